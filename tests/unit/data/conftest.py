"""A cache of its own for each test, and no way out of the machine."""

from pathlib import Path

import pytest

from fracskip.data import fetch
from fracskip.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FRACSKIP_CACHE", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes every route out fail; returns what was asked for."""
    asked: list[str] = []

    def refuse(what: str, *_: object) -> None:
        asked.append(what)
        raise DataError(f"{what} is out of reach")

    monkeypatch.setattr(fetch, "download", refuse)
    monkeypatch.setattr(fetch, "npm_pack", refuse)
    return asked
