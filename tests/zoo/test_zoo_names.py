"""Names of models in files: torchvision's and timm's own, and nothing that leads elsewhere."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tests.support.hostile_files import spec_file

from fracskip.checkpoint import load, load_plain
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_backbone
from fracskip.models.registry import without_memory

HOSTILE = [
    "timm/hf-hub:owner/repo",
    "timm/hf_hub:timm/resnet18.a1_in1k",
    "timm/local-dir:/etc",
    "timm/local_dir:/etc",
    "timm/resnet18.none_such",
    "torchvision/fasterrcnn_resnet50_fpn",
    "torchvision/maskrcnn_resnet50_fpn",
    "torchvision/fcn_resnet50",
    "torchvision/raft_large",
    "torchvision/r3d_18",
    "torchvision/quantized_resnet50",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> Any:
        pytest.fail(f"it tried to connect: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(spec_file(model={"name": name}))
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("it read a folder"))
    with pytest.raises(CheckpointError, match="makes no model"):
        load(path)
    with pytest.raises(ConfigError, match="makes no model"):
        create_backbone(name)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/resnet18",
        "timm/resnet18",
        "timm/resnet18.a1_in1k",
        "torchvision/regnet_x_400mf",
    ],
)
def test_listed_names_are_made_without_a_connection(name: str) -> None:
    net = create_backbone(name, 3, 7)
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def a_few() -> list[str]:
    """Names from all over both libraries, the same ones each time."""
    draw = random.Random(0)
    vision = torchvision.models.list_models(module=torchvision.models)
    small = [name for name in timm.list_models() if "tiny" in name or "test_" in name]
    always = ["timm/swin_tiny_patch4_window7_224", "timm/vitamin_small_224"]
    always += ["torchvision/regnet_y_400mf", "torchvision/swin_t"]
    found = [f"torchvision/{name}" for name in draw.sample(vision, 6)]
    return [*always, *found, *(f"timm/{name}" for name in draw.sample(small, 8))]


@pytest.mark.parametrize("name", a_few())
def test_outlines_have_no_memory_and_the_same_shapes(name: str) -> None:
    with without_memory():
        shapes = create_backbone(name, 3, 11)
    real = create_backbone(name, 3, 11)
    assert all(value.is_meta for value in shapes.parameters())
    found = {key: value.shape for key, value in shapes.state_dict().items()}
    assert found == {key: value.shape for key, value in real.state_dict().items()}


def test_many_classes_of_a_library_are_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    classes = [""] * 10**5
    path.write_bytes(spec_file(model={"name": "torchvision/resnet50"}, class_names=classes))
    with pytest.raises(CheckpointError, match=r"does not fit the network: tensors \d+ missing"):
        load(path)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18", "timm/resnetv2_50"])
def test_plain_weights_of_a_library(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    plain = create_backbone(name, 3, 5)
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    net = load_plain(name, tmp_path / "x.safetensors")
    assert (len(net.spec.class_names), net.options.labels) == (5, ("full",))
    assert net.spec.image.size == (224, 224)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(net(images).logits, plain(images), rtol=1e-3, atol=1e-4)
