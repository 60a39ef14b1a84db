"""Whom a network learns from besides labels."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fracskip.config import Recipe, load_recipe, recipe_from_dict
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_model
from fracskip.training import train
from fracskip.training.stages import BackboneTraining, StepIndex

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A ResNet-14's weights for three classes."""
    torch.manual_seed(4)
    path = tmp_path / "teacher.safetensors"
    save_file(create_model("resnet14", 3, 3).state_dict(), path)
    return path


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_mixes_labels_and_teacher(weight: float) -> None:
    backbone = {
        "load": "x",
        "epochs": 1,
        "distillation": weight,
        "distillation_temperature": 3,
        "optim": {"label_smoothing": 0.1},
    }
    recipe = recipe_from_dict({"name": "x", "options": ["full"], "backbone": backbone})
    torch.manual_seed(0)
    net, taught = create_model("resnet8"), create_model("resnet14").eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    with torch.no_grad():
        ours, theirs = net(images), taught(images)
    hard = F.cross_entropy(ours, labels, label_smoothing=0.1)
    shares = (theirs / 3).softmax(1)
    soft = (shares * (shares.log() - (ours / 3).log_softmax(1))).sum(1).mean() * 9
    stage = BackboneTraining(net, recipe, torch.device("cpu"), False, teacher=taught)
    found = stage.step(images, labels, StepIndex(0, 0, 0.0)).loss / 6
    assert found == pytest.approx(float((1 - weight) * hard + weight * soft), rel=1e-4)
    assert float(soft) != pytest.approx(float(hard), rel=0.05)


def test_a_deeper_teacher_from_a_file(tiny_recipe: Make, run: Go, teacher: Path) -> None:
    taught = {"load": str(teacher), "model": "resnet14"}
    done = run(tiny_recipe(teacher=taught, backbone={"epochs": 2, "distillation": 0.5}), "taught")
    alone = run(tiny_recipe(), "alone")
    digest = "sha256:" + hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert done.events[0]["teacher_digest"] == digest
    assert alone.events[0]["teacher_digest"] == ""
    assert done.epochs[0]["loss"] != alone.epochs[0]["loss"]
    state, file = load_file(done.folder / "state.safetensors"), load_file(teacher)
    kept = {name: state[f"teacher.{name}"] for name in file}
    assert all(torch.equal(kept[name], file[name]) for name in file)


def test_the_same_teacher_in_the_joint_stage(tiny_recipe: Make, run: Go, teacher: Path) -> None:
    taught = {"load": str(teacher), "model": "resnet14"}
    joint = {"joint": {"epochs": 2, "distillation": 0.5}}
    done = run(tiny_recipe(teacher=taught, **joint), "taught")
    own = run(tiny_recipe(**joint), "own")
    assert done.epochs[0]["loss"] == own.epochs[0]["loss"]  # the backbone's stage asks nobody
    assert done.epochs[-1]["loss"] != own.epochs[-1]["loss"]
    assert "teacher.layer1.1.conv1.weight" in load_file(done.folder / "state.safetensors")


def test_a_backbone_learns_from_what_it_was(tiny_recipe: Make, run: Go, tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = create_model("resnet8", 3, 3).state_dict()
    save_file(weights, tmp_path / "start.safetensors")
    backbone = {"load": str(tmp_path / "start.safetensors"), "epochs": 2, "distillation": 0.5}
    recipe = tiny_recipe(options=["full"], backbone=backbone, joint={"epochs": 0})
    done = run(recipe)
    state = load_file(done.folder / "state.safetensors")
    assert torch.equal(state["teacher.conv1.weight"], weights["conv1.weight"])
    assert done.events[0]["teacher_digest"] == ""
    assert done.stages == ["backbone"]


def test_a_teacher_survives_a_resumption(
    tiny_recipe: Make, run: Go, teacher: Path, stopped: Callable[..., Path], opened: Any
) -> None:
    taught = {"load": str(teacher), "model": "resnet14"}
    stages = {"backbone": {"epochs": 2, "distillation": 0.5}, "joint": {"epochs": 1}}
    recipe = tiny_recipe(teacher=taught, **stages)
    whole = run(recipe, "whole")
    folder = stopped(recipe)
    teacher.unlink()  # a run in progress needs the file no longer
    train(recipe, folder, resume=True)
    assert opened(folder).digest == whole.digest


def test_a_teachers_path_counts_from_the_recipes_folder(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n[teacher]\nload = "../t.safetensors"\n[joint]\ndistillation = 1\n')
    assert load_recipe(path).teacher_path == tmp_path / "../t.safetensors"


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"backbone": {"epochs": 1, "distillation": 0.5}}, r"needs a trained teacher: set teacher"),
        ({"teacher": {"load": "t"}}, "no stage learns from it: set distillation in backbone"),
        ({"teacher": {"model": "resnet8"}}, r"teacher\.model is given without teacher\.load"),
        ({"teacher": {"path": "t"}}, r"unknown key 'teacher\.path'"),
        ({"backbone": {"distillation": 2}}, r"backbone\.distillation"),
    ],
)
def test_a_teacher_that_makes_no_sense(tree: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        recipe_from_dict({"name": "x", **tree})


def test_a_teacher_of_another_shape(tiny_recipe: Make, teacher: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        teacher={"load": str(teacher)}, backbone={"epochs": 1, "distillation": 0.5}
    )
    with pytest.raises(CheckpointError, match="teacher"):
        train(recipe, tmp_path / "run")
