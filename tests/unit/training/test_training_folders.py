"""Runs' folders: damaged, incomplete, finished, or in use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fracskip.config import Recipe
from fracskip.errors import CheckpointError, ConfigError, DataError
from fracskip.training import train
from fracskip.training.lock import locked

Make = Callable[..., Recipe]

FEW = {"backbone": {"epochs": 2}, "gates": {"epochs": 1}, "joint": {"epochs": 2}}  # 3 steps each


class Killed(BaseException):
    """Not even an `except Exception` sees it."""


class Listener:
    """A watcher that keeps what it is told, and ends a run after so many epochs."""

    def __init__(self, epochs: int = -1) -> None:
        self.epochs = epochs
        self.notes: list[str] = []

    def loading(self, done: int, total: int) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...
    def step(self, place: Any, totals: Any, lr: float) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, event: dict[str, Any]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise Killed


@pytest.fixture
def finished(tiny_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, made once. Not to be written to."""
    if not _finished:
        folder = tmp_path_factory.mktemp("finished") / "run"
        train(tiny_recipe(**FEW), folder)
        _finished.append(folder)
    return _finished[0]


_finished: list[Path] = []


# -- a folder that is not what it was --------------------------------------------------------------


DONE = "is done: nothing is left to do"
LOSSES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "nothing": (lambda folder: None, [DONE]),
    "the state": (lambda folder: (folder / "state.safetensors").unlink(), [DONE]),
    "the record": (lambda folder: (folder / "record.jsonl").unlink(), [DONE]),
    "the network": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["model.safetensors is missing: it is made anew of the state"],
    ),
    "the summary": (lambda folder: (folder / "run.json").unlink(), []),
    "half the summary": (lambda folder: (folder / "run.json").write_text("{"), []),
    "all records": (
        lambda folder: [(folder / name).unlink() for name in ("run.json", "record.jsonl")],
        ["record.jsonl was damaged or lost: it has 0 of the 5 epochs that are done"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("lost", LOSSES)
def test_what_a_finished_run_has_lost_is_made_anew_or_said(
    tiny_recipe: Make, finished: Path, tmp_path: Path, lost: str
) -> None:
    spoil, said = LOSSES[lost]
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    spoil(folder)
    watcher = Listener()
    assert train(tiny_recipe(**FEW), folder, resume=True, watcher=watcher) == (
        folder / "model.safetensors"
    )
    wanted = json.loads((finished / "run.json").read_text())
    # Where the end is made anew, what it says is said anew.
    told = said if DONE in said else [*said, *wanted["notes"]]
    assert len(watcher.notes) == len(told)
    assert all(text in note for text, note in zip(told, watcher.notes, strict=True))
    model = "model.safetensors"
    assert (folder / model).read_bytes() == (finished / model).read_bytes()
    summary = json.loads((folder / "run.json").read_text())
    assert summary["test"]["accuracy"] == wanted["test"]["accuracy"]
    assert summary["recipe"] == wanted["recipe"]
    kept = [] if lost == "all records" else wanted["epochs"]
    assert summary["epochs"] == kept


@pytest.mark.parametrize(
    ("lost", "changes", "resume", "message"),
    [
        ((), {"seed": 4}, True, "started with another recipe"),
        (("state.safetensors",), {"seed": 4}, True, "started with another recipe"),
        (("run.json",), {"seed": 4}, True, "started with another recipe"),
        ((), {}, False, "already holds a run: add --resume"),
        (("state.safetensors",), {}, False, "already holds a run: add --resume"),
        (("state.safetensors", "run.json"), {}, True, "a run without its state.safetensors"),
        (("state.safetensors", "model.safetensors"), {}, True, "a run without its state.safet"),
        (("state.safetensors", "model.safetensors", "run.json"), {}, True, "no run to resume"),
    ],
)
def test_what_cannot_go_on_is_refused(
    tiny_recipe: Make, finished: Path, tmp_path: Path,
    lost: tuple[str, ...], changes: dict[str, Any], resume: bool, message: str,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in lost:
        (folder / name).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        train(tiny_recipe(**FEW, **changes), folder, resume=resume)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lost_record_goes_on_from_where_it_is(tiny_recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train(tiny_recipe(**FEW), folder, watcher=Listener(epochs=3))
    log = folder / "record.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], b"{" + lines[1], *lines[2:]]))
    watcher = Listener()
    train(tiny_recipe(**FEW), folder, resume=True, watcher=watcher)
    told = (
        f"{log} was damaged or lost: it has 2 of the 3 epochs that are done; the network is whole"
    )
    assert watcher.notes[0] == told
    summary = json.loads((folder / "run.json").read_text())
    assert summary["notes"] == watcher.notes
    places = [(event["stage"], event["epoch"]) for event in summary["epochs"]]
    assert places == [("backbone", 2), ("gates", 1), ("joint", 1), ("joint", 2)]


# -- one training at a time ------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from fracskip.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock of the folder 'run'."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_training_is_refused_until_the_first_is_dead(
    tiny_recipe: Make, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    recipe, folder = tiny_recipe(**FEW), tmp_path / "run"
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"in use by another .*process {holder.pid} on "):
            train(recipe, folder)
    assert [path.name for path in folder.iterdir()] == ["run.lock"]
    holder.kill()  # SIGKILL: it tidies up nothing
    holder.wait()
    assert (folder / "run.lock").exists()
    with pytest.raises(Killed):
        train(recipe, folder, watcher=Listener(epochs=1))
    assert not (folder / "run.lock").exists()


def test_the_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match=r"in use .*this process"):
        with locked(tmp_path):
            pass
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_never_began_leaves_no_folder(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-such"):
        train(tiny_recipe(data={"name": "folder:no-such"}), tmp_path / "runs" / "x")
    assert list(tmp_path.iterdir()) == []
