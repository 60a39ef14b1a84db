"""What a network's parts cost, in multiply-accumulates for one image.

Convention: one multiply-add is one MAC. Convolutions and linear layers are counted; BatchNorm
(folded in deployment), ReLU, pooling and the gates' activations are not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import FailFast

from fracskip.options import FULL_BITS


def conv_macs(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    out_size: tuple[int, int],
    groups: int = 1,
) -> int:
    """MACs of one convolution for one image.

    Args:
        in_channels: Input channels, over all groups.
        out_channels: Output channels, over all groups.
        kernel: Height and width.
        out_size: Height and width of the output.
        groups: Groups of channels.

    >>> conv_macs(16, 16, (3, 3), (32, 32))
    2359296
    """
    return (
        out_size[0] * out_size[1] * out_channels * (in_channels // groups) * kernel[0] * kernel[1]
    )


def linear_macs(in_features: int, out_features: int) -> int:
    """MACs of one linear layer for one row."""
    return in_features * out_features


def at_full_width(macs: int, bits: int) -> float:
    """MACs at 32 bits that have the BitOps of so many at fewer.

    >>> at_full_width(1600, 8)
    100.0
    """
    return macs * (bits / FULL_BITS) ** 2


@dataclass(frozen=True)
class BlockProfile:
    """One residual block.

    Attributes:
        name: Its module path in the backbone.
        branch_macs: The residual branch: what an option scales.
        shortcut_macs: The projection shortcut, executed whatever is chosen.
        gate_macs: Its gate (0 for a block without one).
        gated: Whether an option is chosen for it; otherwise it is always executed.
        fixed_bits: Width of what no option changes: the shortcut, and the branch of a block that
            is not gated.
    """

    name: str
    branch_macs: int
    shortcut_macs: int = 0
    gate_macs: int = 0
    gated: bool = True
    fixed_bits: int = FULL_BITS

    @property
    def fixed_cost(self) -> float:
        """What no option changes, gate excluded, in MACs at 32 bits of equal BitOps."""
        fixed = self.shortcut_macs + (0 if self.gated else self.branch_macs)
        return at_full_width(fixed, self.fixed_bits)


@dataclass(frozen=True)
class NetworkProfile:
    """A whole network: stem, blocks in order, head.

    Attributes:
        stem_macs: What comes before the first block.
        blocks: In order.
        head_macs: What comes after the last one.
        stem_bits: Width of the stem.
        head_bits: Width of the head.
    """

    stem_macs: int
    blocks: Annotated[tuple[BlockProfile, ...], FailFast()]
    head_macs: int
    stem_bits: int = FULL_BITS
    head_bits: int = FULL_BITS

    @cached_property
    def gated(self) -> tuple[BlockProfile, ...]:
        """The blocks for which an option is chosen, in order: the columns of a decision matrix."""
        return tuple(block for block in self.blocks if block.gated)

    @property
    def backbone_macs(self) -> int:
        """The plain network, executed in full, without gates."""
        blocks = sum(block.branch_macs + block.shortcut_macs for block in self.blocks)
        return self.stem_macs + blocks + self.head_macs

    @property
    def gate_macs(self) -> int:
        """All gates together."""
        return sum(block.gate_macs for block in self.blocks)

    @property
    def repeated_macs(self) -> float:
        """What a further member of a cascade executes whatever is chosen: MACs at 32 bits.

        If it is the same network, it goes on from what the first gated block saw: the stem and the
        blocks before that one are not executed again. Gates are included.
        """
        repeated = itertools.dropwhile(lambda block: not block.gated, self.blocks)
        blocks = sum(block.fixed_cost for block in repeated)
        return blocks + at_full_width(self.head_macs, self.head_bits) + self.gate_macs

    @property
    def fixed_macs(self) -> float:
        """What every image executes whatever is chosen, gates included: MACs at 32 bits.

        MACs at b bits count for (b / 32)²: as many as have the same BitOps at 32 bits.
        """
        blocks = sum(block.fixed_cost for block in self.blocks)
        stem = at_full_width(self.stem_macs, self.stem_bits)
        head = at_full_width(self.head_macs, self.head_bits)
        return stem + head + blocks + self.gate_macs
