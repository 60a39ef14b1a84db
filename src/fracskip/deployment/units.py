"""Values in units of the levels that they are rounded to.

What a part of an int8 stream gives is divided by its step, and the level of 0 is added, before it
is rounded. The terms of its last operations do that, wherever these are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fracskip.deployment.lowered import Lowered, Scaled
from fracskip.runtime.operations import (
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    MeanOp,
    Op,
    PoolOp,
)


@dataclass(frozen=True)
class Grid:
    """Levels.

    Attributes:
        step: What one stands for.
        zero: The one that stands for 0.
    """

    step: float
    zero: int = 0


Units = dict[int, Grid]
"""For operations, by position: what their values are divided by, and what is then added."""


def in_units(program: Lowered, grid: Grid | None) -> tuple[Lowered, Units]:
    """A program whose result is in units of a grid.

    Args:
        program: Any.
        grid: The grid; None where the result is not rounded.

    Returns:
        The program, with an operation more where terms can't do it, and which operations' terms do.
    """
    if grid is None:
        return program, {}
    units = _units(program.ops, grid)
    if units is not None:
        return program, units
    output = replace(program.output, index=len(program.ops) + 1)
    # Its gain is 1 but for the units.
    channels = output.channels
    affine = AffineOp(inputs=(len(program.ops),), channels=channels)
    ones = torch.ones(channels, dtype=torch.float64)
    nothing = Scaled(ones, torch.zeros_like(ones))
    ended = Lowered((*program.ops, affine), (*program.sources, nothing), output)
    return ended, {len(program.ops): grid}


def _units(ops: Sequence[Op], grid: Grid) -> Units | None:
    """Which operations' terms bring the last value into units; None if terms alone can't do it."""
    found: Units = {}

    def reach(value: int, wanted: Grid) -> bool:
        """Whether value `value` can be brought into units."""
        position = value - 1
        if position < 0 or sum(value in op.inputs for op in ops[value:]) > 1:
            return False
        op = ops[position]
        plain = not wanted.zero
        if isinstance(op, ConvOp):
            found[position] = wanted
            return op.act == "none" or (op.act == "relu" and plain)
        if isinstance(op, AffineOp):  # a LayerNorm is one, too
            found[position] = wanted
            return True
        if isinstance(op, BinaryOp) and op.inputs[0] != op.inputs[1]:
            first, second = op.inputs
            if op.op == "mul":
                return plain and reach(first, wanted)
            return reach(first, wanted) and reach(second, Grid(wanted.step))
        if isinstance(op, ActOp):
            return op.act == "relu" and plain and reach(op.inputs[0], wanted)
        if isinstance(op, PoolOp | MeanOp):
            return plain and reach(op.inputs[0], wanted)
        return False

    return found if reach(len(ops), grid) else None
