"""What `fit` does and what the command line does without a recipe are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fracskip.config import IMAGENET_MEAN, IMAGENET_STD, Recipe, load_recipe
from fracskip.config.stages import BackboneStage
from fracskip.dynamic import convert
from fracskip.errors import ConfigError, DataError
from fracskip.models import create_model
from fracskip.training import fitting
from fracskip.training.standard import BUDGET, EPOCHS, LR, MEMBERS, standard_recipe

SAME = ("options", "quant", "gate", "supernet", "gates", "joint", "runtime", "batch_size", "seed")


@pytest.fixture
def data(pictures: Path) -> str:
    return f"folder:{pictures}"


def of_fit(**changes: Any) -> Recipe:
    net = convert(create_model("resnet14").eval(), example_input=torch.zeros(1, 3, 32, 32))
    given = {"budget": BUDGET, "epochs": EPOCHS, "members": MEMBERS, "lr": LR, **changes}
    return fitting.make_recipe(net, seed=0, batch_size=128, **given)


@pytest.mark.parametrize(
    "changes", [{}, {"budget": (0.01, 0.1), "epochs": (4, 2, 1)}, {"budget": 0.02}]
)
def test_the_same_as_fits(data: str, changes: dict[str, Any]) -> None:
    ours = standard_recipe("resnet14", data, weights="net.safetensors", **changes)
    theirs = of_fit(**changes)
    for key in SAME:
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.model == theirs.model


def test_defaults_are_those_of_fit() -> None:
    defaults = fitting.fit.__kwdefaults__
    assert (defaults["epochs"], defaults["members"], defaults["lr"]) == (EPOCHS, MEMBERS, LR)
    assert fitting.fit.__defaults__ == (BUDGET,)


def test_images_of_a_folder(data: str) -> None:
    recipe = standard_recipe("torchvision/resnet18", data, weights="net.safetensors")
    image = recipe.data.image
    assert (image.size, image.resize) == ((128, 128), 146)
    assert (image.mean, image.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (recipe.data.augment, recipe.data.validation) == ("resized", 4)
    assert recipe.name.startswith("low_resnet18_pictures")
    small = standard_recipe("resnet8", data, weights="w", size=64, options=["skip", 4])
    assert small.data.image.size == (64, 64)
    assert small.name.startswith("skip-4_resnet8_pictures")


def test_images_of_a_stored_set() -> None:
    plain = standard_recipe("resnet8", "cifar10", weights="w")
    assert plain.data == Recipe(name="x").data
    assert plain.name == "low_resnet8_cifar10"
    assert standard_recipe("resnet8", "cifar10", weights="w", size=64).data.image.size == (64, 64)


def test_what_is_written_is_the_same_run_from_anywhere(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = standard_recipe("resnet8", data, weights="net.safetensors", overrides=["seed=5"])
    assert recipe.backbone_path == tmp_path / "net.safetensors"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(recipe.model_dump_json())
    again = load_recipe(tmp_path / "run" / "recipe.json")
    assert again.model_dump() == recipe.model_dump()
    assert again.backbone_path == recipe.backbone_path


def test_what_does_not_fit_is_said(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no weights: give --weights FILE\.safetensors, or"):
        standard_recipe("resnet8", data)
    scratch = standard_recipe("resnet8", data, overrides=["backbone.epochs=2"]).backbone
    assert scratch.epochs == 2
    # Of few images a fresh network's gradients are clipped; all else is as in any recipe.
    assert scratch.optim == BackboneStage().optim.model_copy(update={"clip_norm": 1.0})
    with pytest.raises(ConfigError, match=r"budget \(0.1, 0.05\) is out of range"):
        standard_recipe("resnet8", data, weights="w", budget=(0.1, 0.05))
    with pytest.raises(ConfigError, match="command line: unknown key 'datta'"):
        standard_recipe("resnet8", data, weights="w", overrides=["datta.x=1"])
    with pytest.raises(ConfigError, match="preset"):
        standard_recipe("resnet8", data, weights="w", options="lowest")
    with pytest.raises(DataError, match="it needs train/CLASS/ and val/CLASS/"):
        standard_recipe("resnet8", f"folder:{tmp_path}/gone", weights="w")
