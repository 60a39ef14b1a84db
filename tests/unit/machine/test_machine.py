import os
import platform
import sys
from importlib import metadata
from typing import NoReturn

import numpy as np
import pytest
import torch

import fracskip
from fracskip.machine import cores, describe_processor, version_of, versions


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "python": platform.python_version(),
        "fracskip": fracskip.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    assert versions() == expected

    def missing(package: str) -> NoReturn:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    assert versions() == {**expected, "torch": "not installed", "numpy": "not installed"}


def test_a_build_that_metadata_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "2.14.1")
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    assert version_of("torch") == "2.14.1+cu130"
    monkeypatch.setattr(torch, "__version__", "2.14.1-21024-abc")
    assert version_of("torch") == "2.14.1"
    monkeypatch.delitem(sys.modules, "torch")
    assert version_of("torch") == "2.14.1"


def test_the_processor_in_words() -> None:
    words = describe_processor(3)
    assert words.endswith(f", 3 of {os.cpu_count()} threads")
    assert words.isprintable()


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
