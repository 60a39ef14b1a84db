"""Recipes name torchvision's networks as they name ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.conftest import draw_pictures

import fracskip
from fracskip.config import Recipe, recipe_from_dict
from fracskip.training import train

IMAGE = {"size": [32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def make_recipe(pictures: Path, **backbone: object) -> Recipe:
    return recipe_from_dict(
        {
            "name": "zoo",
            "batch_size": 12,
            "options": ["skip", 4, 8],
            "data": {"name": f"folder:{pictures}", "image": IMAGE, "validation": 12},
            "model": {"name": "torchvision/mobilenet_v2"},
            "quant": {"calibration_images": 24, "weights": "per_option"},
            "gate": {"width": 4, "output": "sensitivity", "budget_input": True, "block_bias": True},
            "backbone": {"epochs": 1, "optim": {"lr": 0.02}, **backbone},
            "supernet": {"epochs": 1, "distillation": 0.5},
            "gates": {"epochs": 1, "label": "sensitivity", "shrinkage": [0.9, 0.0]},
            "joint": {
                "epochs": 1,
                "allocation": "batch",
                "gate_lr": 0,
                "target": 0.03,
                "norm_images": 24,
            },
            "runtime": {"amp": "off", "threads": 1},
        }
    )


def test_a_mobilenet_is_trained_from_scratch(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    path = train(make_recipe(pictures, stochastic_depth=0.5), tmp_path / "run")
    net = fracskip.load(path)
    assert (len(net.blocks), net.spec.model.name) == (16, "torchvision/mobilenet_v2")
    assert net.spec.class_names == ("blue", "green", "red")
    data = fracskip.data.load_split(f"folder:{pictures}", "test", net.spec.image)
    record = fracskip.evaluate(net, data)
    assert record["cp"] == pytest.approx(0.03, rel=0.3)
    assert {block["name"] for block in record["blocks"]} >= {"features.2", "features.17"}
    # A static network has no skip; what has no shortcut was never skipped.
    skipped = {block["name"]: block["option_share"]["skip"] for block in record["blocks"]}
    assert skipped["features.2"] == 0
    with torch.no_grad():
        images = fracskip.preprocess(data.images[:4], net.spec.image)
        assert net(images, budget=0.03).logits.shape == (4, 3)
