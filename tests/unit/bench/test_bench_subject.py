"""Networks and images for the comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from tests.support.residual_networks import Bottleneck, make_images, make_plain

from fracskip.bench.subject import data_key, evenly, load_images, load_plain, plain_of
from fracskip.checkpoint import save
from fracskip.config import ImageConfig
from fracskip.dynamic import DynamicNetwork, convert
from fracskip.errors import CheckpointError, ConfigError, DataError
from fracskip.models import create_model

CLASSES = ("blue", "green", "red")
IMAGE = ImageConfig(size=(8, 8))


def test_the_plain_network_is_the_dynamic_one_in_full(net: DynamicNetwork) -> None:
    plain = plain_of(net)
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = net(images, decisions=net.forced("full", 4)).logits
        torch.testing.assert_close(plain.net(images), expected)
    assert plain.name == "resnet8"
    assert not plain.net.training


def test_any_network_s_plain_one_is_what_it_was_made_of() -> None:
    original, images = make_plain(Bottleneck), make_images(4)
    net = convert(original, ["skip", 8, "full"], example_input=images[:1], calibration=[images])
    plain = plain_of(net)
    with torch.no_grad():
        torch.testing.assert_close(plain.net(images), original(images))
    model = onnxruntime.InferenceSession(plain.onnx(4).SerializeToString())
    (found,) = model.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, plain.net(images).detach(), atol=1e-5)


def test_without_full_precision_a_backbone_is_needed(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    with pytest.raises(ConfigError, match=r"skip, 4, 8 has no weights .* --backbone FILE"):
        plain_of(make_net(options=["skip", 4, 8]))


def test_an_int8_stream_needs_a_backbone_too(make_net: Callable[..., DynamicNetwork]) -> None:
    with pytest.raises(ConfigError, match=r"int8 stream .* --backbone FILE"):
        plain_of(make_net(options=["skip", 8, "full"], quant={"stream": "int8"}))


def test_a_backbones_depth_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_file(create_model("resnet14", num_classes=3).state_dict(), path)
    plain = load_plain(path, IMAGE, CLASSES)
    assert (plain.name, len(plain.net.named_blocks())) == ("resnet14", 6)
    assert plain.digest.startswith("sha256:")
    with pytest.raises(CheckpointError, match="holds no CIFAR ResNet with 2 classes"):
        load_plain(path, IMAGE, CLASSES[:2])


def test_a_checkpoint_is_a_backbone_too(net: DynamicNetwork, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(net, path)
    assert load_plain(path, IMAGE, CLASSES).name == "resnet8"
    with pytest.raises(CheckpointError, match="other images or classes"):
        load_plain(path, ImageConfig(), CLASSES)


def test_files_that_are_no_backbones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_plain(tmp_path / "none", IMAGE, CLASSES)
    (tmp_path / "bad").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        load_plain(tmp_path / "bad", IMAGE, CLASSES)
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no CIFAR ResNet"):
        load_plain(tmp_path / "other", IMAGE, CLASSES)


def test_images(pictures: Path) -> None:
    name = f"folder:{pictures}"
    images = load_images(name, IMAGE, CLASSES, 6, name)
    assert images.test.images.shape == (6, 8, 8, 3)
    assert images.floats.shape == (6, 3, 8, 8)
    assert images.floats.flags.c_contiguous
    assert images.calibration.shape == (48, 3, 8, 8)
    assert len(images.singles) == 6
    np.testing.assert_array_equal(images.singles[2][0], images.floats[2])
    with pytest.raises(DataError, match="other classes"):
        load_images(name, IMAGE, ("a", "b"), 6, name)


@pytest.mark.parametrize(
    ("count", "of", "rows"), [(3, 11, [0, 5, 10]), (9, 3, [0, 1, 2]), (1, 5, [0])]
)
def test_evenly(count: int, of: int, rows: list[int]) -> None:
    assert evenly(count, of).tolist() == rows


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CIFAR-100 (re-split)", "cifar100"),
        ("Fashion-MNIST", "fashion-mnist"),
        ("cifar10", "cifar10"),
        ("sample", "sample"),
    ],
)
def test_data_keys(name: Any, key: str) -> None:
    assert data_key(name) == key
