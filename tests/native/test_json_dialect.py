"""The native reader of JSON against Python's, in short; `make fuzz` in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.json_dialect import RULES, compare
from support.native_build import missing_tools

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "never")


def test_native_json_differs_from_pythons_by_the_rules_alone(tmp_path: Path) -> None:
    outcomes = compare(6000, 1, tmp_path)
    assert set(outcomes) == {"same", "refused", *RULES}
    assert outcomes["same"] > 2000
    assert outcomes["refused"] > 2000
