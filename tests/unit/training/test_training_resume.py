"""Runs that are stopped, killed, resumed - and misused."""

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fracskip import checkpoint
from fracskip.checkpoint import read_package
from fracskip.config import Recipe
from fracskip.errors import CheckpointError, ConfigError
from fracskip.training import RunInterrupted, train
from fracskip.training.loop import STATE_SCHEMA

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run

TOOL = Path(__file__).parents[3] / "tools" / "prove_resume.py"
FEW = {"backbone": {"epochs": 2}, "gates": {"epochs": 1}, "joint": {"epochs": 2}}  # 3 steps each


class Killed(BaseException):
    """Not even an `except Exception` sees it."""


class Killer:
    """A watcher that ends a run after so many steps, or after so many epochs."""

    def __init__(self, steps: int = -1, epochs: int = -1) -> None:
        self.steps, self.epochs = steps, epochs

    def loading(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...

    def step(self, place: Any, totals: Any, lr: float) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise Killed

    def epoch(self, event: dict[str, Any]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise Killed


def without_seconds(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "seconds"} for e in events if e["event"] == "epoch"]


def same(one: Any, other: Any) -> None:
    assert (one.folder / "model.safetensors").read_bytes() == (
        other.folder / "model.safetensors"
    ).read_bytes()
    assert without_seconds(one.events) == without_seconds(other.events)
    assert [event["event"] for event in one.events] == [event["event"] for event in other.events]


# -- killed and resumed ---------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quant": {"scheme": "paper"}, "joint": {"objective": "paper", "gate_gradient": "dense"}},
        {
            "quant": {"stream": "int8"},
            "gate": {"standardise": True},
            "joint": {"objective": "balance", "distillation": 0.5, "diversity": 0.1},
        },
        {
            "options": ["skip", 8, "full"],
            "quant": {"stream": "int8"},
            "gates": {"option": "8", "label": "sensitivity", "allocation": "chosen"},
            "joint": {"allocation": "batch", "gate_lr": 0, "target": 0.04, "budgets": [0.02, 0.05]},
        },
        {
            "options": ["skip", 4, 8],
            "gate": {"standardise": True, "width": 6, "block_bias": True},
            "gates": {"option": "8", "label": "sensitivity", "allocation": "chosen"},
            "joint": {
                "allocation": "batch",
                "gate_lr": 0,
                "target": 0.03,
                "aim": "budgets",
                "budgets": [0.01, 0.02, 0.03, 0.04, 0.05],
            },
        },
        {
            "options": ["skip", 2, 4, 8],
            "gate": {"width": 6, "block_bias": True},
            "supernet": {"epochs": 2, "distillation": 0.5},
            "gates": {"option": "8", "label": "sensitivity"},
            "joint": {"allocation": "batch", "gate_lr": 0, "target": 0.02, "decisions": "static"},
        },
    ],
    ids=["lsq", "paper", "int8", "shared", "budgets", "supernet"],
)
def test_killed_in_every_stage_and_resumed(
    tiny_recipe: Make,
    run: Go,
    opened: Go,
    tmp_path: Path,
    every: int,
    changes: dict[str, Any],
) -> None:
    few = {
        key: {**FEW[key], **changes.get(key, {})} if key in FEW else changes[key]
        for key in (*FEW, *changes)
    }
    whole = run(tiny_recipe(**few), "whole")
    recipe = tiny_recipe(**few, runtime={"checkpoint_steps": every})
    folder = tmp_path / "killed"
    # Amid an epoch, at its last step before it is recorded, and between two epochs.
    kills = [{"steps": 2}, {"steps": 3}, {"epochs": 1}, {"steps": 1}, {"steps": 4}]
    killed = 0
    for kill in itertools.cycle(kills):
        try:
            train(recipe, folder, resume=killed > 0, watcher=Killer(**kill))
            break
        except Killed:
            killed += 1
            assert not (folder / "model.safetensors").exists()
    assert killed >= 5
    same(opened(folder), whole)


def test_killed_between_the_record_of_an_epoch_and_the_state(
    tiny_recipe: Make, run: Go, opened: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is in the record, the state says that it is not done: it is told once."""
    write, writes = checkpoint.write_package, []

    def dies_once(path: Path, *rest: Any) -> str:
        writes.append(path)
        if len(writes) == 3:
            raise Killed
        return write(path, *rest)

    recipe, folder = tiny_recipe(**FEW), tmp_path / "killed"
    monkeypatch.setattr(checkpoint, "write_package", dies_once)
    with pytest.raises(Killed):
        train(recipe, folder)
    assert len(opened(folder).epochs) == 2
    position = read_package(folder / "state.safetensors", STATE_SCHEMA).meta["position"]
    assert (position["recorded"], position["epoch"]) == (1, 1)
    train(recipe, folder, resume=True)
    same(opened(folder), run(recipe, "whole"))


def test_killed_between_the_network_and_the_summary(
    tiny_recipe: Make,
    run: Go,
    opened: Go,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fracskip.training import loop

    recipe = tiny_recipe(**FEW)
    whole = run(recipe, "whole")

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Record, "write_summary", die)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed")
    assert (tmp_path / "killed" / "model.safetensors").exists()
    train(recipe, tmp_path / "killed", resume=True)
    same(opened(tmp_path / "killed"), whole)


def test_what_a_kill_left_of_a_write_is_tidied_up(
    tiny_recipe: Make,
    run: Go,
    opened: Go,
    tmp_path: Path,
) -> None:
    recipe, folder = tiny_recipe(**FEW), tmp_path / "killed"
    with pytest.raises(Killed):
        train(recipe, folder, watcher=Killer(epochs=2))
    (folder / ".state.safetensors.0badcafe.part").write_bytes(b"half a st")
    log = folder / "record.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "epoch", "sta')
    train(recipe, folder, resume=True)
    assert not list(folder.glob(".*"))
    same(opened(folder), run(recipe, "whole"))


def test_a_damaged_state_is_refused(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(**FEW), tmp_path / "killed"
    with pytest.raises(Killed):
        train(recipe, folder, watcher=Killer(epochs=1))
    state = bytearray((folder / "state.safetensors").read_bytes())
    state[-5] ^= 1
    (folder / "state.safetensors").write_bytes(state)
    log = (folder / "record.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="does not match its digest"):
        train(recipe, folder, resume=True)
    assert (folder / "record.jsonl").read_bytes() == log


def test_where_a_run_computes_may_change(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tiny_recipe(**FEW), tmp_path / "killed", watcher=Killer(epochs=1))
    elsewhere = {"device": "cpu", "checkpoint_steps": 1, "channels_last": False, "threads": 1}
    train(tiny_recipe(**FEW, runtime=elsewhere), tmp_path / "killed", resume=True)
    assert (tmp_path / "killed" / "run.json").exists()


# -- Ctrl-C ---------------------------------------------------------------------------------------


class Presser(Killer):
    """A watcher that presses Ctrl-C, once or more often, after so many steps."""

    def __init__(self, steps: int, times: int = 1) -> None:
        super().__init__()
        self.left, self.times = steps, times

    def step(self, place: Any, totals: Any, lr: float) -> None:
        self.left -= 1
        if self.left == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("steps", "place"),
    [(1, ("backbone", 0, 1)), (3, ("backbone", 0, 3)), (8, ("gates", 0, 2)), (11, ("joint", 0, 2))],
)
def test_interrupted_and_resumed(
    tiny_recipe: Make,
    run: Go,
    opened: Go,
    tmp_path: Path,
    steps: int,
    place: tuple[str, int, int],
) -> None:
    recipe, folder = tiny_recipe(**FEW), tmp_path / "stopped"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunInterrupted, match="stopped"):
        train(recipe, folder, watcher=Presser(steps))
    assert signal.getsignal(signal.SIGINT) is before
    position = read_package(folder / "state.safetensors", STATE_SCHEMA).meta["position"]
    assert (position["stage"], position["epoch"], position["step"]) == place
    train(recipe, folder, resume=True)
    same(opened(folder), run(recipe, "whole"))


def test_a_second_interrupt_does_not_wait(tiny_recipe: Make, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(**FEW), tmp_path / "run", watcher=Presser(2, times=2))
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_command_line(
    tiny_recipe: Make,
    tiny_tree: dict[str, Any],
    run: Go,
    opened: Go,
    tmp_path: Path,
) -> None:
    """The message, the exit code 130, and the same weights as of a run that was left alone."""
    lines = ['name = "tiny"']
    for key, value in tiny_tree.items():
        if isinstance(value, dict):
            inner = [f"{k} = {json.dumps(v)}" for k, v in value.items() if k != "image"]
            lines += [f"[{key}]", *inner]
    image = tiny_tree["data"]["image"]
    lines += ["[data.image]", *[f"{k} = {json.dumps(v)}" for k, v in image.items()]]
    top = ["seed = 3", "batch_size = 12", 'options = ["skip", 4, "full"]']
    (tmp_path / "r.toml").write_text("\n".join([lines[0], *top, *lines[1:]]))
    process = subprocess.Popen(
        [sys.executable, "-m", "fracskip.cli", "train", "r.toml", "--set", "joint.epochs=8"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("joint 1:"):
            break
    process.send_signal(signal.SIGINT)
    output, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert rest.splitlines()[-1] == (
        "fracskip: stopped; runs/tiny is saved: go on with the same command and --resume"
    )
    assert "Traceback" not in rest
    assert [line.split(":")[0] for line in said] == [
        *["backbone 1", "backbone 2", "gates 1", "gates 2", "gates 3", "gates 4", "joint 1"]
    ]
    recipe = tiny_recipe(joint={"epochs": 8})
    train(recipe, tmp_path / "runs" / "tiny", resume=True)
    same(opened(tmp_path / "runs" / "tiny"), run(recipe, "whole"))


# -- wrong uses -----------------------------------------------------------------------------------


def test_nothing_to_resume(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume: start it without --resume"):
        train(tiny_recipe(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tiny_recipe(**FEW), tmp_path / "run", watcher=Killer(epochs=1))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ConfigError, match=r"already holds a run: add --resume .*another name"):
        train(tiny_recipe(**FEW), tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("changes", [{"seed": 4}, {"joint": {"epochs": 3}}, {"batch_size": 6}])
def test_a_run_is_resumed_with_its_own_recipe(
    tiny_recipe: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        train(tiny_recipe(**FEW), tmp_path / "run", watcher=Killer(epochs=1))
    before = (tmp_path / "run" / "record.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="was started with another recipe: resume it with that"):
        train(tiny_recipe(**{**FEW, **changes}), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "record.jsonl").read_bytes() == before


def test_a_finished_run_is_left_as_it_is(
    tiny_recipe: Make, run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fracskip.training import loop

    done = run(tiny_recipe(**FEW))
    before = {path.name: path.read_bytes() for path in done.folder.iterdir()}

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run needs no images")

    monkeypatch.setattr(loop, "load_split", refuse)
    assert train(tiny_recipe(**FEW), done.folder, resume=True) == done.folder / "model.safetensors"
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before


# -- the proof ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prove_resume", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_three_times(proof: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "proof.json"
    assert proof.main(["--steps", "80", "--kills", "3", "--json", str(out)]) == 0
    outcome = json.loads(out.read_text())
    assert outcome["steps"] == 80
    assert len(outcome["kills"]) == outcome["kills_wanted"] == 3
    assert outcome["digests_equal"] is True
    assert outcome["digest_killed"] == outcome["digest_uninterrupted"]
    assert outcome["differences"] == []
    assert outcome["epochs_compared"] == 4
    assert outcome["versions"]["torch"] == torch.__version__
    for kill in outcome["kills"]:
        assert set(kill) == {"after_seconds", "saved", "steps_done", "amid_a_write"}


def test_the_proof_fails_where_runs_differ(
    proof: ModuleType, tiny_recipe: Make, run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees weights, epochs and tests; an outcome with differences is a failure."""
    one, again = run(tiny_recipe(**FEW), "one"), run(tiny_recipe(**FEW), "again")
    other = run(tiny_recipe(**FEW, seed=4), "other")
    first = proof.read_run(one.folder)
    assert proof.differences(first, proof.read_run(again.folder)) == []
    found = proof.differences(first, proof.read_run(other.folder))
    assert {"digest", "file_sha256", "epochs"} <= set(found)

    log = again.folder / "record.jsonl"
    log.write_text(log.read_text().replace('"epoch": 2', '"epoch": 9'))
    assert proof.differences(first, proof.read_run(again.folder)) == ["epochs"]

    for outcome, code in (
        ({"kills": [1], "steps": 9, "differences": ["digest"]}, 1),
        ({"kills": [], "steps": 9, "differences": []}, 1),  # too short to be killed
        ({"kills": [1], "steps": 9, "differences": []}, 0),
    ):
        monkeypatch.setattr(proof, "prove", lambda *_, outcome=outcome: outcome)
        assert proof.main(["--kills", "1"]) == code
