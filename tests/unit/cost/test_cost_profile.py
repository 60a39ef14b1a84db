from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fracskip.cost import BlockProfile, NetworkProfile, account, conv_macs, linear_macs
from fracskip.options import OptionSet

BLOCKS = (
    BlockProfile("first", 100, gated=False),
    BlockProfile("plain", 200, gate_macs=7),
    BlockProfile("strided", 300, shortcut_macs=20, gate_macs=9),
)
NETWORK = NetworkProfile(1000, BLOCKS, 50)


def slow_conv_macs(
    in_channels: int, out_channels: int, kernel: tuple[int, int], out: tuple[int, int], groups: int
) -> int:
    """One multiply-add at a time."""
    count = 0
    for channel in range(out_channels):
        group = channel // (out_channels // groups)
        for _ in range(out[0] * out[1]):
            for source in range(in_channels):
                if source // (in_channels // groups) == group:
                    count += kernel[0] * kernel[1]
    return count


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel", "out", "groups"),
    [
        (3, 4, (3, 3), (5, 5), 1),
        (4, 4, (1, 1), (3, 7), 1),
        (4, 6, (3, 1), (2, 9), 2),
        (6, 6, (3, 3), (4, 2), 6),
    ],
)
def test_convolutions_are_counted_as_a_loop_counts_them(
    in_channels: int, out_channels: int, kernel: tuple[int, int], out: tuple[int, int], groups: int
) -> None:
    slow = slow_conv_macs(in_channels, out_channels, kernel, out, groups)
    assert conv_macs(in_channels, out_channels, kernel, out, groups) == slow


def test_linear_layers() -> None:
    assert linear_macs(64, 10) == 640
    assert linear_macs(1, 1) == 1


def test_sums_by_hand() -> None:
    assert NETWORK.backbone_macs == 1000 + 100 + 200 + 300 + 20 + 50
    assert NETWORK.gate_macs == 16
    assert NETWORK.fixed_macs == 1000 + 100 + 20 + 50 + 16
    assert [block.name for block in NETWORK.gated] == ["plain", "strided"]


def test_fixed_parts_at_8_bits_count_by_their_bitops() -> None:
    """The first block's 100 and the shortcut's 20 MACs at (8 / 32)²; branches are the options'."""
    narrow = tuple(dataclasses.replace(block, fixed_bits=8) for block in BLOCKS)
    network = NetworkProfile(1000, narrow, 50)
    assert network.fixed_macs == 1000 + 100 / 16 + 20 / 16 + 50 + 16
    assert network.backbone_macs == NETWORK.backbone_macs
    decisions = np.array([[0, 1], [1, 1]])
    report = account(decisions, OptionSet.of("skip8"), network)
    assert report.cp == 0.75 / 16
    executed = network.fixed_macs + (100 + 300) / 16  # means over two images
    assert report.bitops_ratio == pytest.approx(executed / network.backbone_macs)


def test_a_network_without_gates_is_all_fixed() -> None:
    ungated = tuple(dataclasses.replace(b, gated=False, gate_macs=0) for b in BLOCKS)
    network = NetworkProfile(1000, ungated, 50)
    assert network.gated == ()
    assert network.fixed_macs == network.backbone_macs == NETWORK.backbone_macs


def test_profiles_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BLOCKS[0].branch_macs = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORK.head_macs = 1  # type: ignore[misc]
