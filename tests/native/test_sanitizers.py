"""The native engine under sanitizers, in short; `make fuzz` and `make native-sanitize` in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.native_build import build, missing_tools, run, write_seeds

MUTANTS = 600

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "never")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeds(tmp_path_factory.mktemp("seeds"))


def test_sanitizers_damaged_bundles_are_refused_or_run(seeds: Path, tmp_path: Path) -> None:
    driver = build("address", "fuzz_bundle") / "fuzz" / "fuzz_bundle"
    outcome = tmp_path / "outcome.json"
    run([str(driver), "--seeds", str(seeds), "--count", str(MUTANTS), "--json", str(outcome)])
    counts = json.loads(outcome.read_text())
    assert counts["mutants"] == counts["refused"] + counts["accepted"] == MUTANTS
    assert counts["refused"] > 0.5 * MUTANTS
    assert counts["run"] > 0.05 * MUTANTS
    assert counts["operated"] > 0.03 * MUTANTS


def test_sanitizers_kernels_stay_within_their_memory() -> None:
    run([str(build("address", "native_kernels") / "tests" / "kernels")])


def test_sanitizers_threads_share_an_engine_without_races(seeds: Path) -> None:
    driver = build("thread", "native_threads") / "tests" / "threads"
    assert "the same answers" in run([str(driver), str(seeds), "4"])


def test_sanitizers_runs_stand_lack_of_memory_and_other_float_environments(seeds: Path) -> None:
    driver = build("address", "native_faults") / "tests" / "faults"
    assert "the same answers" in run([str(driver), str(seeds)])
