"""What tests of several packages share: tiny images in folders, tiny recipes, a tiny network.

torch is imported inside the fixtures: tests that need none do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from fracskip.config import ModelSpec, Recipe
    from fracskip.dynamic import DynamicNetwork

# A loaded machine draws slowly; that says nothing about the code.
settings.register_profile(
    "fracskip", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fracskip")

# They hold no doctests, and as modules they would all have the same name.
collect_ignore_glob = ["*conftest.py"]

CLASSES = ("blue", "green", "red")


def draw_pictures(root: Path, train: int = 48, test: int = 12, side: int = 8) -> Path:
    """An image folder of three classes that differ in colour, PNG files of side x side."""
    draw = np.random.RandomState(0)
    for split, count in (("train", train), ("val", test)):
        for index in range(count):
            label = index % len(CLASSES)
            pixels = draw.randint(0, 140, (side, side, 3))
            pixels[..., 2 - label] += 80
            path = root / split / CLASSES[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


NORMALISATION = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def tiny_tree(pictures: Path) -> dict[str, Any]:
    """A recipe of three stages that takes a second or two, as a dictionary."""
    return {
        "name": "tiny",
        "seed": 3,
        "batch_size": 12,
        "options": ["skip", 4, "full"],
        "data": {
            "name": f"folder:{pictures}",
            "image": {"size": [8, 8], **NORMALISATION},
            "validation": 9,
            "split_seed": 3,
            "crop_padding": 1,
        },
        "model": {"name": "resnet8"},
        "quant": {"calibration_images": 24},
        "backbone": {"epochs": 2},
        "gates": {"epochs": 4, "lr": 0.03},
        "joint": {"epochs": 4, "target": 0.1, "gate_lr": 0.05, "price_rate": 0.1},
        "runtime": {"amp": "off", "threads": 1},
    }


@pytest.fixture
def tiny_recipe(tiny_tree: dict[str, Any]) -> Callable[..., Recipe]:
    """Makes the tiny recipe, tables merged with what is given: joint={'epochs': 2}."""
    from fracskip.config import recipe_from_dict

    def make(**changes: Any) -> Recipe:
        tree = dict(tiny_tree)
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return recipe_from_dict(tree)

    return make


def tiny_spec(**changes: Any) -> ModelSpec:
    from fracskip.config import ModelSpec

    tree: dict[str, Any] = {
        "model": {"name": "resnet8"},
        "options": ["skip", 4, "full"],
        "quant": {},
        "gate": {"width": 4},
        "image": {"size": [8, 8]},
        "class_names": CLASSES,
        "data_name": "pictures",
    }
    return ModelSpec.model_validate({**tree, **changes})


def make_net(**changes: Any) -> DynamicNetwork:
    """A calibrated network with random weights; its images differ in class and in allocation.

    Args:
        changes: Of `tiny_spec`, and fields of its operating points; its target is 0.1 if not given.
    """
    import torch
    from tests.support.settled import settle

    from fracskip.dynamic import build_network
    from fracskip.operating import OperatingPoints

    fields = OperatingPoints.model_fields.keys() & changes.keys()
    points = {"target": 0.1, **{name: changes.pop(name) for name in fields}}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        net = build_network(tiny_spec(**changes)).eval()
        net.operating_points = OperatingPoints.model_validate(points)
        images = torch.randn(64, net.spec.image.channels, *net.spec.image.size)
        settle(net, images)
        net.calibrate([images])
        if net.gate is not None:
            for name, value in net.gate.named_parameters():
                torch.nn.init.normal_(value, std=0.0 if "bias" in name else 3.0)
            outs = net.gate.out if isinstance(net.gate.out, torch.nn.ModuleList) else [net.gate.out]
            logits = -net.gate_scores(images)
            for index, out in enumerate(outs):
                of_out = logits if len(outs) == 1 else logits[:, index]
                out.bias.copy_(-of_out.flatten(0, -2).mean(0))
        net.backbone.fc.bias.copy_(-net(images).logits.mean(0))
    return net


@pytest.fixture(name="make_net")
def _make_net() -> Callable[..., DynamicNetwork]:
    return make_net


@pytest.fixture(name="tiny_spec")
def _tiny_spec() -> Callable[..., ModelSpec]:
    return tiny_spec


@pytest.fixture
def net() -> DynamicNetwork:
    return make_net()


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny network, of the classes that `pictures` has. Not to be written to."""
    from fracskip.checkpoint import save

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save(make_net(), path, notes={"recipe": "tiny"})
    return path


@pytest.fixture(scope="session")
def bundle_file(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Path) -> Path:
    """The same network as a bundle. Not to be written to."""
    from fracskip.checkpoint import load
    from fracskip.deployment.bundle import export_bundle

    path = tmp_path_factory.mktemp("bundle") / "tiny.fsk"
    export_bundle(load(checkpoint_file), path)
    return path
