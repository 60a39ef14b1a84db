"""The same networks as bundles: every part gives what its block gives, or a refusal by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.zoo.test_zoo_contract import MODELS, dynamic_network, make_images, plain_network
from torch import Tensor

import fracskip
from fracskip.config import GateConfig, QuantConfig
from fracskip.deployment.bundle import bundle_of
from fracskip.errors import ConfigError
from fracskip.runtime.bundle import encode_bundle, parse_bundle
from fracskip.runtime.portable import PortableEngine
from fracskip.runtime.portable.network import _Grid

# What a bundle has no word for.
REFUSED = {
    "torchvision/shufflenet_v2_x1_0": r"stage2.0 \(cat\) has no place",
    "timm/ecaresnet50t": "has no place in a bundle",
    "timm/convnextv2_tiny": r"grn \(linalg_vector_norm\) has no place",
}


def near(found: Tensor, wanted: Tensor, quantised: bool = False) -> None:
    """Every element, or their mean: a value between two levels may go to either."""
    off = (found - wanted).abs() / wanted.std()
    if quantised:
        assert float(off.mean()) < 0.01
    else:
        assert float((off / (1 + wanted.abs() / wanted.std())).max()) < 1e-4


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSED])
def test_every_part_gives_what_its_block_gives(name: str) -> None:
    net = dynamic_network(name)
    plan, tensors = bundle_of(net)
    parts = PortableEngine([parse_bundle(encode_bundle(plan, tensors)[0])], 1).executors[0].network
    images = make_images()
    with torch.no_grad():
        x = net.begin(images)
        near(parts.begin(images), x)
        for index, block in enumerate(net.blocks):
            last = index == len(net.blocks) - 1
            for option in range(len(net.options)):
                if net.options[option].bits == 16 or not (option or block.can_be_skipped):
                    continue  # 16 bits take their input as it is
                wanted = block.execute(x, net.options[option])
                found = parts.execute(index, x, torch.full((len(x),), option))
                wanted = (net.sections.head(wanted) if last else wanted).flatten(1)
                near(found.flatten(1), wanted, net.options[option].is_quantised)
            x = block.execute(x, net.options[-1])


STREAMED = (
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "torchvision/regnet_y_400mf",
    "timm/resnet18",
    "timm/tf_efficientnet_lite0",
)


def levels(x: Tensor, grid: _Grid | None) -> Tensor:
    """Values of an int8 stream as its levels."""
    assert grid is not None
    return (x / grid._step).round() + grid._zero


@pytest.mark.parametrize("name", STREAMED)
def test_every_part_gives_the_levels_that_its_block_gives(name: str) -> None:
    net = fracskip.convert(
        plain_network(name),
        ["skip", 4, 8, "full"],
        quant=QuantConfig(weights="per_option", stream="int8"),
        gate=GateConfig(width=8),
        example_input=make_images(1),
        calibration=[make_images()],
        name=name,
    )
    plan, tensors = bundle_of(net)
    parts = PortableEngine([parse_bundle(encode_bundle(plan, tensors)[0])], 1).executors[0].network
    grids = [part.grid for part in parts._gated]
    images = make_images()
    with torch.no_grad():
        x = net.begin(images)
        off = (parts.begin(images) - levels(x, grids[0])).abs()
        assert float(off.mean()) < 0.01  # of a level: a value between two may go to either
        for index, block in enumerate(net.blocks):
            last = index == len(net.blocks) - 1
            for option in range(len(net.options)):
                if not (option or block.can_be_skipped):
                    continue
                wanted = block.execute(x, net.options[option])
                chosen = torch.full((len(x),), option)
                found = parts.execute(index, levels(x, grids[index]), chosen)
                if last:
                    near(found.flatten(1), net.sections.head(wanted), quantised=True)
                else:
                    off = (found - levels(wanted, grids[index + 1])).abs()
                    assert float(off.mean()) < 0.05, (block.name, option)
            x = block.execute(x, net.options[-1])


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_bundle_can_t_say_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]):
        fracskip.export(dynamic_network(name), tmp_path / "net.fsk")
    assert not (tmp_path / "net.fsk").exists()
