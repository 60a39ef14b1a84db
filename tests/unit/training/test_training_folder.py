"""Runs on folders as people have them: of any size, with damaged files, few images of a class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import draw_pictures
from torch.nn import functional as F

from fracskip import checkpoint, evaluate
from fracskip.config import Recipe
from fracskip.data import load_split
from fracskip.errors import CheckpointError, DataError
from fracskip.models import create_model
from fracskip.training import train
from fracskip.training.stages import BackboneTraining

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run
SHORT: dict[str, Any] = {"gates": {"epochs": 1}, "joint": {"epochs": 1}}


def of_the_data(notes: list[str]) -> list[str]:
    """Without what is said of how a training of two epochs went."""
    return [each for each in notes if not each.startswith(("stage ", "the target of "))]


class Notes:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, text: str) -> None:
        self.found.append(text)

    def loading(self, done: int, total: int) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...
    def step(self, place: Any, totals: Any, lr: float) -> None: ...
    def epoch(self, event: dict[str, Any]) -> None: ...


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "photos", side=14)


def test_crops_in_training_and_centres_in_evaluation(
    tiny_recipe: Make, run: Go, photos: Path
) -> None:
    image = {"size": [8, 8], "resize": 10}
    data = {"name": f"folder:{photos}", "image": image, "augment": "resized", "workers": 2}
    done = run(tiny_recipe(**SHORT, data=data, backbone={"epochs": 3}))
    net = checkpoint.load(done.folder / "model.safetensors")
    assert net.spec.image.resize == 10
    test = load_split(data["name"], "test", net.spec.image)
    whole = load_split(data["name"], "test", net.spec.image.view)
    np.testing.assert_array_equal(test.images, whole.images[:, 1:9, 1:9])
    # What was written is what anybody finds with the checkpoint alone.
    assert evaluate(net, test)["accuracy"] == done.summary["test"]["accuracy"] > 0.4
    with_threads = run(
        tiny_recipe(**SHORT, data={**data, "workers": 0}, backbone={"epochs": 3}), "b"
    )
    assert with_threads.epochs[-1]["loss"] == done.epochs[-1]["loss"]


def test_damaged_images(tiny_recipe: Make, run: Go, photos: Path, tmp_path: Path) -> None:
    for name in ("train/red/bad.png", "val/blue/worse.png"):
        (photos / name).write_bytes(b"no image")
    data = {"name": f"folder:{photos}"}
    with pytest.raises(DataError, match=r"1 of 49 images .*bad\.png.*data\.on_corrupt"):
        train(tiny_recipe(data=data), tmp_path / "stopped")
    notes = Notes()
    recipe = tiny_recipe(**SHORT, data={**data, "on_corrupt": "skip"}, backbone={"epochs": 1})
    done = run(recipe, watcher=notes)
    sentence = "images left out because they cannot be decoded (1): "
    assert of_the_data(notes.found) == [
        f"{sentence}train/red/bad.png",
        f"{sentence}val/blue/worse.png",
    ]
    assert of_the_data(done.summary["notes"]) == notes.found[:1]
    assert done.summary["data"]["skipped"] == ["train/red/bad.png"]
    assert done.summary["data"]["skipped_test"] == ["val/blue/worse.png"]
    assert done.summary["test"]["images"] == 12


def test_a_missing_test_set_is_said_before_training(
    tiny_recipe: Make, photos: Path, tmp_path: Path
) -> None:
    (photos / "val").rename(photos / "valid")
    with pytest.raises(DataError, match=r"cannot be read at .*val "):
        train(tiny_recipe(data={"name": f"folder:{photos}"}), tmp_path / "run")


def few_reds(photos: Path) -> str:
    for file in sorted((photos / "train/red").iterdir())[5:]:
        file.unlink()
    return f"folder:{photos}"


def test_rare_classes_are_said(tiny_recipe: Make, run: Go, photos: Path) -> None:
    data, notes = {"name": few_reds(photos), "validation": 6}, Notes()
    done = run(tiny_recipe(**SHORT, data=data, backbone={"epochs": 1}), watcher=notes)
    assert of_the_data(notes.found) == [
        'there are few images of red: data.balance = "sample" draws each class equally often'
    ]
    found = done.summary["data"]
    assert found["rare"] == ["red"]
    assert found["classes"]["red"] < 6 < found["classes"]["blue"]
    assert (found["train"], found["validation"]) == (sum(found["classes"].values()), 6)


@pytest.mark.parametrize("balance", ["sample", "loss"])
def test_rare_classes_are_learned(tiny_recipe: Make, run: Go, photos: Path, balance: str) -> None:
    data, notes = {"name": few_reds(photos), "validation": 6, "balance": balance}, Notes()
    done = run(tiny_recipe(**SHORT, data=data, backbone={"epochs": 4}), watcher=notes)
    assert of_the_data(notes.found) == []
    assert done.summary["data"]["rare"] == ["red"]
    accuracy = {row["name"]: row["accuracy"] for row in done.summary["test"]["classes"]}
    assert accuracy["red"] >= 0.75


def test_classes_weigh_in_the_loss(tiny_recipe: Make) -> None:
    stage = BackboneTraining(
        create_model("resnet8", 3, 3), tiny_recipe(), torch.device("cpu"), False
    )
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
    config = stage.recipe.backbone
    images = torch.zeros(6, 3, 8, 8)
    alike = stage.learning_loss(logits, images, labels, config)
    torch.testing.assert_close(alike, F.cross_entropy(logits, labels))
    stage.class_weights = torch.tensor([0.2, 1.4, 1.4])
    each = F.cross_entropy(logits, labels, reduction="none") * stage.class_weights[labels]
    weighed = stage.learning_loss(logits, images, labels, config)
    torch.testing.assert_close(weighed, each.sum() / stage.class_weights[labels].sum())


# -- a backbone of other classes ------------------------------------------------------------------


def test_a_classifier_of_other_classes_is_made_anew(
    tiny_recipe: Make, run: Go, tmp_path: Path
) -> None:
    path = tmp_path / "seven.safetensors"
    torch.manual_seed(1)
    save_file(create_model("resnet8", 3, 7).state_dict(), path)
    notes = Notes()
    backbone = {"load": str(path), "epochs": 2}
    done = run(tiny_recipe(**SHORT, backbone=backbone), watcher=notes)
    assert of_the_data(notes.found) == [
        f"{path} was trained for 7 classes and the data has 3: its last layer, fc, was made anew"
    ]
    assert done.summary["notes"] == notes.found
    assert load_file(done.folder / "model.safetensors")["backbone.fc.weight"].shape == (3, 64)
    assert done.summary["test"]["accuracy"] > 0.5


def test_what_is_kept_and_what_is_fresh(tmp_path: Path) -> None:
    old, new = create_model("resnet8", 3, 7), create_model("resnet8", 3, 3)
    save_file(old.state_dict(), tmp_path / "seven.safetensors")
    fresh = new.fc.weight.clone()
    said: list[Any] = []
    digest = checkpoint.load_backbone(
        tmp_path / "seven.safetensors", new, lambda *what: said.append(what)
    )
    assert digest.startswith("sha256:")
    assert said == [("fc", 7, 3)]
    assert torch.equal(new.fc.weight, fresh)
    assert torch.equal(new.conv1.weight, old.conv1.weight)


def test_another_network_is_still_refused(tmp_path: Path) -> None:
    wide = create_model("resnet8", 3, 7).state_dict()
    for name, change in (
        ("fc.weight", torch.zeros(7, 32)),
        ("fc.bias", torch.zeros(6)),
        ("conv1.weight", torch.zeros(16, 1, 3, 3)),
    ):
        save_file({**wide, name: change}, tmp_path / "other.safetensors")
        said: list[Any] = []
        with pytest.raises(CheckpointError, match=r"has shape"):
            checkpoint.load_backbone(
                tmp_path / "other.safetensors",
                create_model("resnet8", 3, 3),
                lambda *what, said=said: said.append(what),
            )
