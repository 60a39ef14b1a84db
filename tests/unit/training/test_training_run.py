"""Whole runs on a few dozen tiny images."""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fracskip import checkpoint
from fracskip.config import Recipe, load_recipe
from fracskip.data import load_split
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_model
from fracskip.report import load_record
from fracskip.training import loop, train

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run

SHORT = {"backbone": {"epochs": 1}, "gates": {"epochs": 1}, "joint": {"epochs": 1}}


# -- the stages -----------------------------------------------------------------------------------


def test_the_three_stages(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe())
    names = sorted(path.name for path in done.folder.iterdir())
    assert names == [
        "model.safetensors",
        "recipe.json",
        "record.jsonl",
        "run.json",
        "state.safetensors",
    ]
    assert [event["event"] for event in done.events] == ["start", *["epoch"] * 10, "end"]
    stages = [(event["stage"], event["epoch"], event["step"]) for event in done.epochs]
    steps = 3  # 48 - 9 images, 12 a batch
    assert stages == [
        (stage, epoch, epoch * steps)
        for stage, epochs in (("backbone", 2), ("gates", 4), ("joint", 4))
        for epoch in range(1, epochs + 1)
    ]

    # The gates' stage ends with the top option everywhere, and leaves the backbone alone.
    gates = [event for event in done.epochs if event["stage"] == "gates"]
    assert gates[-1]["agreement"] == gates[-1]["cp"] == 1.0
    assert gates[-1]["validation"]["option_share"] == {"skip": 0, "4": 0, "full": 1}
    assert gates[-1]["validation"]["accuracy"] == done.epochs[1]["validation"]["accuracy"]
    assert gates[-1]["loss"] < gates[0]["loss"]

    # The joint stage goes from there towards the target.
    joint = [event for event in done.epochs if event["stage"] == "joint"]
    costs = [event["cp"] for event in joint]
    assert costs[0] > 0.3 > 0.1 > costs[-1]
    assert joint[0]["price"] > 0
    assert done.summary["test"]["cp"] < 0.2
    assert done.summary["test"]["accuracy"] > 0.9  # colours are easy

    rates = [event["lr"] for event in joint]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_trained_network(tiny_recipe: Make, run: Go, pictures: Path) -> None:
    recipe = tiny_recipe(**SHORT)
    done = run(recipe)
    net = checkpoint.load(done.folder / "model.safetensors")
    assert net.digest == done.digest
    assert net.spec.options == ("skip", "4", "full")
    assert net.spec.class_names == ("blue", "green", "red")
    assert net.spec.data_name == pictures.name
    assert net.operating_points.target == 0.1
    assert net.spec.image == recipe.data.image
    assert net.notes["recipe"] == "tiny"
    assert net.notes["seed"] == 3
    assert set(net.notes["versions"]) == {"python", "fracskip", "torch", "numpy"}
    assert net.gate is not None
    weights = [value for name, value in net.gate.state_dict().items() if "embed" in name]
    assert all(torch.equal(value, value.bfloat16().float()) for value in weights if value.ndim > 1)
    again = loop.evaluate(net, load_split(f"folder:{pictures}", "test", net.spec.image))
    for key in ("accuracy", "cp", "option_share", "images"):
        assert again[key] == done.summary["test"][key]


def test_a_run_is_its_seed(tiny_recipe: Make, run: Go) -> None:
    first, second = run(tiny_recipe(**SHORT), "a"), run(tiny_recipe(**SHORT), "b")
    assert first.digest == second.digest
    without_seconds = [
        [{k: v for k, v in event.items() if k != "seconds"} for event in done.epochs]
        for done in (first, second)
    ]
    assert without_seconds[0] == without_seconds[1]
    assert run(tiny_recipe(**SHORT, seed=4), "c").digest != first.digest


def test_the_global_random_state_is_left_alone(tiny_recipe: Make, run: Go) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = run(tiny_recipe(**SHORT), "a").digest
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert run(tiny_recipe(**SHORT), "b").digest == first


def test_the_record_can_be_reported(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe(**SHORT))
    for path in (done.folder, done.folder / "record.jsonl", done.folder / "run.json"):
        record = load_record(path)
        assert record.is_finished
        assert [epoch.stage for epoch in record.epochs] == ["backbone", "gates", "joint"]
        assert record.test.digest == done.digest


def test_the_watcher_sees_every_step(tiny_recipe: Make, run: Go) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.calls: list[Any] = []
            self.images: list[int] = []
            self.loads: list[tuple[int, int]] = []
            self.notes: list[str] = []

        def loading(self, done: int, total: int) -> None:
            self.loads.append((done, total))

        def note(self, text: str) -> None:
            self.notes.append(text)

        def stage(self, name: str, epochs: int, steps: int) -> None:
            self.calls.append((name, epochs, steps))

        def step(self, place: Any, totals: Any, lr: float) -> None:
            self.calls.append((place.epoch, place.step, round(place.progress, 4)))
            self.images.append(totals.images)
            assert lr >= 0

        def epoch(self, event: dict[str, Any]) -> None:
            self.calls.append((event["stage"], event["epoch"]))

    watcher = Watcher()
    done = run(tiny_recipe(**{**SHORT, "gates": {"epochs": 2}}), watcher=watcher)
    assert watcher.calls == [
        *[("backbone", 1, 3), (0, 0, 0.0), (0, 1, 0.3333), (0, 2, 0.6667), ("backbone", 1)],
        *[("gates", 2, 3), (0, 0, 0.0), (0, 1, 0.1667), (0, 2, 0.3333), ("gates", 1)],
        *[(1, 0, 0.5), (1, 1, 0.6667), (1, 2, 0.8333), ("gates", 2)],
        *[("joint", 1, 3), (0, 0, 0.0), (0, 1, 0.3333), (0, 2, 0.6667), ("joint", 1)],
    ]
    assert watcher.loads == [(32, 48), (48, 48), (12, 12)]
    assert watcher.notes == done.summary["notes"]
    assert [note.split(",")[0] for note in watcher.notes] == ["the target of 0.1 is not met"]
    # Totals begin anew each epoch; of 12 images one executes one option everywhere: left out.
    assert watcher.images == [12, 24, 36] * 3 + [11, 22, 33]


# -- variations of the recipe ---------------------------------------------------------------------


def test_one_option_needs_no_gates(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe(**{**SHORT, "options": ["full"], "backbone": {"epochs": 3}}))
    assert done.stages == ["backbone", "joint"]
    test = done.summary["test"]
    assert test["cp"] == test["bitops_ratio"] == 1.0
    assert test["checkpoint"]["gate"] == "none"
    assert test["checkpoint"]["target"] is None
    assert test["static"] == []
    net = checkpoint.load(done.folder / "model.safetensors")
    assert net.gate is None
    assert net.operating_points.target is None


def test_a_backbone_alone(tiny_recipe: Make, run: Go) -> None:
    recipe = tiny_recipe(options=["full"], backbone={"epochs": 3}, joint={"epochs": 0})
    done = run(recipe)
    assert done.stages == ["backbone"]
    assert done.summary["test"]["accuracy"] == 1.0


def backbone_file(path: Path) -> str:
    torch.manual_seed(8)
    save_file(create_model("resnet8", 3, 3).state_dict(), path)
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_loaded_backbone_as_it_is(tiny_recipe: Make, run: Go, tmp_path: Path) -> None:
    digest = backbone_file(tmp_path / "backbone.safetensors")
    load = {"load": str(tmp_path / "backbone.safetensors"), "epochs": 0}
    done = run(tiny_recipe(**{**SHORT, "backbone": load, "joint": {"epochs": 0, "norm_images": 0}}))
    assert done.stages == ["gates"]
    assert done.events[0]["backbone_digest"] == digest
    # The gates' stage trains nothing but gates: these are still the file's weights.
    net, plain = checkpoint.load(done.folder / "model.safetensors"), create_model("resnet8", 3, 3)
    checkpoint.load_backbone(tmp_path / "backbone.safetensors", plain)
    for name, value in plain.state_dict().items():
        assert torch.equal(net.backbone.state_dict()[name], value), name


def test_a_loaded_backbone_trained_further(tiny_recipe: Make, run: Go, tmp_path: Path) -> None:
    backbone_file(tmp_path / "backbone.safetensors")
    load = {"load": str(tmp_path / "backbone.safetensors"), "epochs": 1}
    done = run(tiny_recipe(**{**SHORT, "backbone": load}), "a")
    assert done.stages == ["backbone", "gates", "joint"]
    fresh = run(tiny_recipe(**SHORT), "b")
    assert fresh.events[0]["backbone_digest"] == ""
    assert fresh.epochs[0]["loss"] != done.epochs[0]["loss"]


def test_a_backbones_path_counts_from_the_recipes_folder(
    tiny_tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = backbone_file(tmp_path / "backbone.safetensors")
    (tmp_path / "recipes").mkdir()
    data = f'[data]\nname = "{tiny_tree["data"]["name"]}"\nvalidation = 9\n[data.image]\nsize=[8,8]'
    (tmp_path / "recipes" / "r.toml").write_text(
        'name = "r"\n[model]\nname = "resnet8"\n[gates]\nepochs = 0\n[joint]\nepochs = 0\n'
        f'[backbone]\nload = "../backbone.safetensors"\n{data}\n'
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/r.toml", ["runtime.threads=1"])
    train(recipe, tmp_path / "run")
    start = json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[0])
    assert start["backbone_digest"] == digest


@pytest.mark.parametrize(
    ("backbone", "error", "match"),
    [
        ({"epochs": 0}, ConfigError, r"backbone\.epochs is 0 and backbone\.load is empty: give"),
        ({"epochs": 0, "load": "gone"}, CheckpointError, r"gone does not exist"),
        (
            {"epochs": 0, "load": "wide"},
            ConfigError,
            r"wide was trained for 7 classes and the data has 3: its last layer, fc, is made anew "
            r"and has to learn; set backbone\.epochs",
        ),
    ],
)
def test_no_backbone_to_begin_with(
    tiny_recipe: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(create_model("resnet8", 3, 7).state_dict(), tmp_path / "wide")
    with pytest.raises(error, match=match):
        train(tiny_recipe(**{**SHORT, "backbone": backbone}), tmp_path / "run")
    # Nothing that stands in the way of a run with a mended recipe.
    train(tiny_recipe(**SHORT), tmp_path / "run")


def test_a_gate_that_takes_a_budget(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe(**SHORT, gate={"budget_input": True}))
    net = checkpoint.load(done.folder / "model.safetensors")
    images = torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        default = net(images)
        given = net(images, budget=net.operating_points.target)
        other = net.gate_scores(images, budget=0.9)
        usual = net.gate_scores(images)
    assert torch.equal(default.logits, given.logits)
    assert not torch.equal(other, usual)


def test_a_gate_that_takes_no_budget_refuses_one(tiny_recipe: Make, run: Go) -> None:
    net = checkpoint.load(run(tiny_recipe(**SHORT)).folder / "model.safetensors")
    with pytest.raises(ConfigError, match="takes none: leave budget out"):
        net(torch.randn(1, 3, 8, 8), budget=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"quant": {"scheme": "paper"}},
        {"joint": {"epochs": 2, "objective": "paper", "beta": 1e-3}},
        {"joint": {"epochs": 1, "gate_gradient": "dense"}},
        {
            "quant": {"scheme": "paper"},
            "joint": {"epochs": 2, "objective": "paper", "gate_gradient": "dense"},
            "options": "paper",
        },
        {"gate": {"kind": "feedforward"}},
        {"options": [2, 8]},
        {"options": "low"},
        {"gates": {"epochs": 0}},
        {"joint": {"epochs": 1, "uniform_rate": 0, "exploration": 0, "descent": 0}},
        {"joint": {"epochs": 1, "optim": {"schedule": "step", "clip_norm": 0, "momentum": 0}}},
        {"runtime": {"amp": "bf16", "threads": 1}},
        {"runtime": {"amp": "off", "threads": 1, "channels_last": False}},
        {"batch_size": 1, "data": {"train_limit": 3}},
        {"data": {"flip": False, "crop_padding": 0, "image": {"size": [8, 16]}}},
        {"data": {"image": {"size": [8, 8], "channels": 1, "mean": [0.4], "std": [0.3]}}},
    ],
    ids=str,
)
def test_other_recipes_run_to_their_end(
    tiny_recipe: Make, tiny_tree: dict[str, Any], run: Go, changes: dict[str, Any]
) -> None:
    merged = {**SHORT, "data": {}, **changes}
    merged["data"] = {**tiny_tree["data"], **merged["data"]}
    recipe = tiny_recipe(**merged)
    done = run(recipe)
    assert all(np.isfinite(event["loss"]) for event in done.epochs)
    assert all(0 <= event["cp"] <= 1 for event in done.epochs if event["cp"] is not None)
    net = checkpoint.load(done.folder / "model.safetensors")
    assert net.spec.option_set == recipe.option_set
    assert (net.spec.quant, net.spec.gate) == (recipe.quant, recipe.gate)
    assert load_record(done.folder).test.images == 12


def test_weights_move_in_the_joint_stage(tiny_recipe: Make, run: Go) -> None:
    with_joint = run(tiny_recipe(**SHORT), "a").folder / "model.safetensors"
    without = (
        run(tiny_recipe(**{**SHORT, "joint": {"epochs": 0}}), "b").folder / "model.safetensors"
    )
    after, before = (checkpoint.load(path).state_dict() for path in (with_joint, without))
    still = {name for name in after if torch.equal(after[name], before[name])}
    # BatchNorm statistics stand still; everything that is learned moves.
    assert all(
        "running_" in n or "num_batches" in n or "option_mean" in n or "option_var" in n
        for n in still
    ), still
    assert any(name.startswith("gate.") for name in after.keys() - still)
    assert any(name.endswith("weight_step") for name in after.keys() - still)


def test_a_run_in_a_thread(tiny_recipe: Make, run: Go) -> None:
    done = []
    thread = threading.Thread(target=lambda: done.append(run(tiny_recipe(**SHORT), "a")))
    thread.start()
    thread.join()
    assert done[0].digest == run(tiny_recipe(**SHORT), "b").digest


def test_a_folder_that_cannot_be_made(tiny_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written .*choose another folder"):
        train(tiny_recipe(), tmp_path / "file" / "run")


def test_a_gpu_that_is_not_there(
    tiny_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU: use 'auto' or 'cpu'"):
        train(tiny_recipe(runtime={"device": "cuda"}), tmp_path / "run")
