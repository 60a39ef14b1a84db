"""Runs that several tests read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fracskip.config import Recipe
from fracskip.training import train


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """Recipes set torch's threads for the process: put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass
class Run:
    """A finished run's folder and what lies in it."""

    folder: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.folder / "record.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "epoch"]

    @property
    def summary(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return tree

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(event["stage"] for event in self.epochs))

    @property
    def digest(self) -> str:
        return str(self.summary["test"]["checkpoint_digest"])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Runs a recipe from start to end in a fresh folder."""

    def go(recipe: Recipe, name: str = "run", **options: Any) -> Run:
        path = train(recipe, tmp_path / name, **options)
        assert path == tmp_path / name / "model.safetensors"
        return Run(tmp_path / name)

    return go


class _Stopped(BaseException):
    pass


class _StopsAfterAnEpoch:
    def loading(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...
    def step(self, place: Any, totals: Any, lr: float) -> None: ...
    def epoch(self, event: dict[str, Any]) -> None:
        raise _Stopped


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., Path]:
    """Runs a recipe until its first epoch is done, and gives the folder that is left."""

    def go(recipe: Recipe, name: str = "stopped") -> Path:
        with pytest.raises(_Stopped):
            train(recipe, tmp_path / name, watcher=_StopsAfterAnEpoch())
        return tmp_path / name

    return go


@pytest.fixture
def opened() -> type[Run]:
    """Opens a finished run's folder."""
    return Run
