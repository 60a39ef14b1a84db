"""MACs of the published networks, derived by hand from shapes."""

from __future__ import annotations

import pytest

from fracskip.config import GateConfig, ImageConfig, ModelConfig, ModelSpec, QuantConfig
from fracskip.cost import NetworkProfile
from fracskip.dynamic import build_network


def profile(depth: int, image: ImageConfig, classes: int = 10) -> NetworkProfile:
    spec = ModelSpec(
        model=ModelConfig(name=f"resnet{depth}"),
        options=("full",),
        quant=QuantConfig(),
        gate=GateConfig(),
        image=image,
        class_names=tuple(map(str, range(classes))),
        data_name="",
    )
    return build_network(spec).profile


CIFAR = ImageConfig()

# At 32x32: a 3x3 convolution of 16 -> 16 channels at 32x32, 32 -> 32 at 16x16 and 64 -> 64 at 8x8
# cost the same; where the stage changes, the first convolution has half as many input channels.
STEM = 32 * 32 * 16 * (3 * 9)
CONV = 32 * 32 * 16 * (16 * 9)
STRIDED = 16 * 16 * 32 * (16 * 9)
SHORTCUT = 16 * 16 * 32 * 16
HEAD = 64 * 10


def test_the_terms_agree_with_themselves() -> None:
    assert (STEM, CONV, STRIDED, SHORTCUT, HEAD) == (442_368, 2_359_296, 1_179_648, 131_072, 640)
    assert CONV == 16 * 16 * 32 * (32 * 9) == 8 * 8 * 64 * (64 * 9)
    assert STRIDED == 8 * 8 * 64 * (32 * 9)
    assert SHORTCUT == 8 * 8 * 64 * 32


@pytest.mark.parametrize(
    ("depth", "golden"), [(20, 40_813_184), (38, 83_280_512), (74, 168_215_168)]
)
def test_totals(depth: int, golden: int) -> None:
    n = (depth - 2) // 6
    assert STEM + (6 * n - 2) * CONV + 2 * STRIDED + 2 * SHORTCUT + HEAD == golden
    assert profile(depth, CIFAR).backbone_macs == golden


@pytest.mark.parametrize("depth", [8, 20, 38])
def test_every_blocks_branch_and_shortcut(depth: int) -> None:
    n = (depth - 2) // 6
    found = profile(depth, CIFAR)
    strided = (STRIDED + CONV, SHORTCUT)
    wanted = [(2 * CONV, 0)] * n + ([strided] + [(2 * CONV, 0)] * (n - 1)) * 2
    assert [(block.branch_macs, block.shortcut_macs) for block in found.blocks] == wanted
    names = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(n)]
    assert [block.name for block in found.blocks] == names
    assert (found.stem_macs, found.head_macs) == (STEM, HEAD)
    assert [block.gated for block in found.blocks] == [False] + [True] * (3 * n - 1)
    assert found.gate_macs == 0


def test_a_grey_non_square_image_of_one_class() -> None:
    image = ImageConfig(size=(10, 17), channels=1, mean=(0.5,), std=(0.2,))
    found = profile(8, image, classes=1)
    # Strides round up: 10x17 -> 5x9 -> 3x5.
    assert found.stem_macs == 10 * 17 * 16 * 9
    assert found.head_macs == 64
    assert [(block.branch_macs, block.shortcut_macs) for block in found.blocks] == [
        (2 * 10 * 17 * 16 * 16 * 9, 0),
        (5 * 9 * 32 * (16 + 32) * 9, 5 * 9 * 32 * 16),
        (3 * 5 * 64 * (32 + 64) * 9, 3 * 5 * 64 * 32),
    ]
