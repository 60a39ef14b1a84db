"""One contract over the networks that people have: torchvision's and timm's, random weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.residual_networks import settled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fracskip
from fracskip.config import GateConfig
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.models import create_backbone
from fracskip.quant.normalisation import FractionalBatchNorm2d

# Gated blocks, and how many of them have a shortcut; the first block is never gated.
MODELS = {
    "torchvision/resnet18": (7, 7),
    "torchvision/resnet34": (15, 15),
    "torchvision/resnet50": (15, 15),
    "torchvision/resnet101": (32, 32),
    "torchvision/wide_resnet50_2": (15, 15),
    "torchvision/resnext50_32x4d": (15, 15),
    "torchvision/mobilenet_v2": (16, 10),
    "torchvision/mobilenet_v3_large": (14, 9),
    "torchvision/efficientnet_b0": (15, 9),
    "torchvision/convnext_tiny": (17, 17),
    "torchvision/regnet_y_400mf": (15, 15),
    "torchvision/shufflenet_v2_x1_0": (16, 0),
    "timm/resnet18": (7, 7),
    "timm/resnet50d": (15, 15),
    "timm/seresnet50": (15, 15),
    "timm/ecaresnet50t": (15, 15),
    "timm/resnetv2_50": (15, 15),
    "timm/mobilenetv2_100": (15, 10),
    "timm/mobilenetv3_large_100": (14, 9),
    "timm/mobilenetv4_conv_small": (11, 10),
    "timm/efficientnet_b0": (14, 9),
    "timm/tf_efficientnetv2_s": (39, 34),
    "timm/tf_efficientnet_lite0": (14, 9),
    "timm/convnext_tiny": (17, 17),
    "timm/convnextv2_tiny": (17, 17),
    "timm/regnety_004": (15, 15),
}
SIZE = (96, 80)
# Without shortcuts by addition, blocks are named, and get the widths alone.
NAMED: dict[str, Callable[[str, nn.Module], bool]] = {
    "torchvision/shufflenet_v2_x1_0": lambda name, module: (
        type(module).__name__ == "InvertedResidual"
    )
}


def make_images(count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *SIZE, generator=draw)


@functools.lru_cache(maxsize=1)
def plain_network(name: str) -> nn.Module:
    """With norms that hold the statistics of what they see: as a trained network's do."""
    torch.manual_seed(0)
    return settled(create_backbone(name, num_classes=10), make_images())


@functools.lru_cache(maxsize=1)
def dynamic_network(name: str) -> DynamicNetwork:
    net = fracskip.convert(
        plain_network(name),
        ["skip", 4, 16, "full"],
        gate=GateConfig(width=8),
        blocks=NAMED.get(name),
        example_input=make_images(1),
        calibration=[make_images()],
        class_names=[f"class {index}" for index in range(10)],
        name=name,
    )
    for module in net.modules():
        if isinstance(module, FractionalBatchNorm2d):
            # Calibration's are of other sums; here it is the layers that are looked at.
            module.option_mean.copy_(module.running_mean.expand_as(module.option_mean))
            module.option_var.copy_(module.running_var.expand_as(module.option_var))
    return net


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest error, as a share of how far logits lie apart."""
    return float((found - wanted).abs().max() / wanted.std())


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_blocks_are_found(name: str) -> None:
    net = dynamic_network(name)
    assert (len(net.blocks), sum(block.can_be_skipped for block in net.blocks)) == MODELS[name]
    rows = net.summary().splitlines()
    assert len([row for row in rows if "not gated" not in row]) == len(net.blocks) + 1


@torch.no_grad()
def test_in_full_it_is_the_original(name: str) -> None:
    plain, net, images = plain_network(name), dynamic_network(name), make_images(3)
    found = net(images, decisions=net.forced("full", 3)).logits
    assert off(found, plain(images)) < 1e-5


@torch.no_grad()
def test_at_16_bits_it_is_nearly(name: str) -> None:
    """So every converted layer is executed as it should be, with its own step and zero point."""
    plain, net, images = plain_network(name), dynamic_network(name), make_images()
    found = net(images, decisions=net.forced(16, len(images))).logits
    wanted = plain(images)
    assert float((found - wanted).abs().mean() / wanted.std()) < 0.02


@torch.no_grad()
def test_images_take_paths_of_their_own(name: str) -> None:
    net, images = dynamic_network(name), make_images(4)
    draw = torch.Generator().manual_seed(1)
    # Skipped, at 16 bits or in full: at 4 bits sums in another order round to other levels.
    decisions = torch.tensor([0, 2, 3])[torch.randint(0, 3, (4, len(net.blocks)), generator=draw)]
    bars = torch.tensor([not block.can_be_skipped for block in net.blocks])
    decisions = torch.where(bars & (decisions == 0), 2, decisions)
    together = net(images, decisions=decisions)
    alone = [net(images[i : i + 1], decisions=decisions[i : i + 1]).logits for i in range(4)]
    assert off(torch.cat(alone), together.logits) < 0.02
    assert net(images).decisions.shape == decisions.shape


def test_weights_keep_their_names_and_macs_are_torchs(name: str) -> None:
    plain, net = plain_network(name), dynamic_network(name)
    inside = {key.removeprefix("backbone.") for key in net.state_dict()}
    assert plain.state_dict().keys() <= inside
    meta = copy.deepcopy(plain).to("meta")
    with FlopCounterMode(display=False) as counter:
        meta(make_images(1).to("meta"))
    assert 2 * net.profile.backbone_macs == counter.get_total_flops()


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/mobilenet_v3_large", "timm/convnextv2_tiny"]
)
def test_a_checkpoint_is_loaded_by_name(name: str, tmp_path: Path) -> None:
    net, images = dynamic_network(name), make_images(2)
    fracskip.save(net, tmp_path / "net.safetensors")
    again = fracskip.load(tmp_path / "net.safetensors")
    assert torch.equal(again(images).logits, net(images).logits)
    assert again.summary() == net.summary()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/shufflenet_v2_x1_0", "ShuffleNetV2 has no residual blocks: .* blocks="),
        ("torchvision/vgg11", "VGG has no residual blocks"),
    ],
)
def test_what_can_not_be_done_is_said(name: str, message: str) -> None:
    plain = create_backbone(name, num_classes=10)
    with pytest.raises(ConfigError, match=message):
        fracskip.convert(plain, "low", example_input=make_images(1))


@torch.no_grad()
def test_weights_that_are_computed_are_folded() -> None:
    plain, images = create_backbone("timm/resnetv2_50x1_bit", num_classes=10), make_images(2)
    with pytest.warns(UserWarning, match="weights of 'stem.conv', .* and 50 more are computed"):
        net = fracskip.convert(plain, [8, "full"], example_input=images)
    found = net(images, budget=1.0, decisions=net.forced("full", 2)).logits
    assert off(found, plain(images)) < 1e-5
    assert len(net.blocks) == 15


@pytest.mark.parametrize("name", ["torchvision/resnet19", "timm/resnet19", "hub/resnet18"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="resnet1"):
        create_backbone(name)
