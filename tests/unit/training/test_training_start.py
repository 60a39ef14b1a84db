"""A run that goes on with a network that is dynamic already."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fracskip.checkpoint import load, save
from fracskip.config import Recipe, recipe_from_dict
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_model

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run
IDLE: dict[str, Any] = {"backbone": {"epochs": 0}, "gates": {"epochs": 0}}


@pytest.fixture
def trained(tiny_recipe: Make, run: Go) -> Path:
    done = run(tiny_recipe(), "first")
    return Path(done.folder / "model.safetensors")


def test_with_no_epochs_the_network_stays_as_it_is(
    tiny_recipe: Make, run: Go, trained: Path
) -> None:
    joint = {"epochs": 0, "norm_images": 0}
    done = run(tiny_recipe(**IDLE, start=str(trained), joint=joint), "again")
    before, after = load_file(trained), load_file(done.folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert done.events[0]["start_digest"] == load(trained).digest
    assert done.events[0]["backbone_digest"] == ""
    assert done.stages == []


def test_a_cascade_is_not_taken_over(
    tiny_recipe: Make, run: Go, trained: Path, tmp_path: Path
) -> None:
    """It was measured with other weights."""
    net = load(trained)
    points = ((0.05, 0.05, 0.2, 0.5), (0.3, 0.1, 0.4, 0.9))
    curve = ((0.05, 1.0), (0.4, -1.0))
    net.operating_points = net.operating_points.changed(multiplier_curve=curve, cascade=points)
    save(net, tmp_path / "twice.safetensors")
    assert load(tmp_path / "twice.safetensors").operating_points.cascade == points
    joint = {"epochs": 0, "norm_images": 0}
    start = str(tmp_path / "twice.safetensors")
    done = run(tiny_recipe(**IDLE, start=start, joint=joint), "again")
    assert load(done.folder / "model.safetensors").operating_points.cascade == ()


def test_weights_go_on_from_where_they_were(tiny_recipe: Make, run: Go, trained: Path) -> None:
    done = run(tiny_recipe(**IDLE, start=str(trained), joint={"epochs": 1}), "again")
    scratch = run(tiny_recipe(backbone={"epochs": 1}), "scratch")
    assert done.stages == ["joint"]
    assert done.epochs[0]["accuracy"] > scratch.epochs[0]["accuracy"] + 0.1
    before, after = load_file(trained), load_file(done.folder / "model.safetensors")
    assert not torch.equal(before["backbone.fc.weight"], after["backbone.fc.weight"])


def test_every_image_alike_from_a_network_whose_images_differ(tiny_recipe: Make, run: Go) -> None:
    gate = {"block_bias": True}  # only so can a recurrent gate be told a path
    trained = run(tiny_recipe(gate=gate), "first").folder / "model.safetensors"
    joint = {"epochs": 1, "decisions": "static", "gate_lr": 0}
    done = run(tiny_recipe(**IDLE, start=str(trained), gate=gate, joint=joint), "frozen")
    net = load(done.folder / "model.safetensors")
    decisions = net(torch.randn(32, 3, *net.spec.image.size)).decisions
    assert (decisions == decisions[:1]).all()


def test_it_survives_a_resumption(
    tiny_recipe: Make, run: Go, stopped: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    torch.manual_seed(4)
    save_file(create_model("resnet14", 3, 3).state_dict(), teacher)
    recipe = tiny_recipe(
        **IDLE,
        start=str(trained),
        teacher={"load": str(teacher), "model": "resnet14"},
        joint={"epochs": 2, "distillation": 0.5},
    )

    whole = run(recipe, "whole")
    done = run(recipe, stopped(recipe).name, resume=True)
    ours, theirs = (load_file(one.folder / "model.safetensors") for one in (done, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert done.epochs[0]["loss"] == whole.epochs[0]["loss"]


def test_a_network_of_another_kind_is_refused(tiny_recipe: Make, run: Go, trained: Path) -> None:
    recipe = tiny_recipe(**IDLE, start=str(trained), gate={"width": 6})
    with pytest.raises(ConfigError, match=r"its gate is .*the recipe's is .*width=6"):
        run(recipe, "other")
    with pytest.raises(CheckpointError, match="does not exist"):
        run(tiny_recipe(**IDLE, start=str(trained.parent / "none.safetensors")), "none")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"backbone": {"load": "x"}}, "leave backbone.load and backbone.epochs out"),
        ({"backbone": {"epochs": 1}}, "leave backbone.load and backbone.epochs out"),
        ({"joint": {"distillation": 0.5}}, "set teacher.load"),
    ],
)
def test_what_a_start_rules_out(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        recipe_from_dict({"name": "x", "start": "net.safetensors", **changes})
