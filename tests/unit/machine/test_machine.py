import os
import platform
from importlib import metadata
from typing import NoReturn

import numpy as np
import pytest
import torch

import fracskip
from fracskip.machine import cores, describe_processor, versions


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


def test_the_processor_in_words() -> None:
    words = describe_processor(3)
    assert words.endswith(f", 3 of {os.cpu_count()} threads")
    assert words.isprintable()


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
