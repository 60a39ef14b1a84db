"""An 8-bit integer residual stream: what flows between blocks, on one grid per stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fracskip.quant.affine import IntegerGrid
from fracskip.quant.fake import fake_quantise
from fracskip.quant.observer import best_grid, best_step
from fracskip.quant.quantisers import SMALLEST_STEP, STREAM_BITS, thinned

STREAM_BOUNDS = IntegerGrid(STREAM_BITS, signed=False).bounds


class StreamQuantiser(nn.Module):
    """Unsigned 8-bit levels with one learned step per stage.

    A stage is a run of blocks between projections, so a block that is skipped hands its input on as
    it is. Negative values clip to level 0: quantising is the block's last ReLU. Stages whose values
    have both signs have a zero point as well, an integer that stays where calibration put it.

    Args:
        stages: How many.
        signed: Of each stage, whether its values have both signs; none has if not given.
    """

    zeros: Tensor | None

    def __init__(self, stages: int, signed: Sequence[bool] = ()) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.ones(stages))
        self._signed = tuple(signed) or (False,) * stages
        zeros = torch.zeros(stages, dtype=torch.int32) if any(self._signed) else None
        self.register_buffer("zeros", zeros)

    def step(self, stage: int) -> Tensor:
        """A stage's step, (1,), positive."""
        return self.steps[stage : stage + 1].clamp_min(SMALLEST_STEP)

    def zero(self, stage: int) -> int:
        """The level that stands for 0 in a stage."""
        return 0 if self.zeros is None else int(self.zeros[stage])

    def forward(self, x: Tensor, stage: int, shortcut: Tensor | None = None) -> Tensor:
        """Rounds values (plus a shortcut's) of any shape to the stage's levels, times its step."""
        zero, (low, high) = self.zero(stage), STREAM_BOUNDS
        return fake_quantise(x, self.step(stage), (low - zero, high - zero), shortcut)

    @torch.no_grad()
    def observe(self, seen: Sequence[Sequence[Tensor]]) -> None:
        """Initialises the steps.

        Args:
            seen: For each stage, what flowed through it: the output of the stem or of a block,
                tensors of any shape.
        """
        for stage, outputs in enumerate(seen):
            values = thinned(torch.cat([thinned(x) for x in outputs]))
            if self.zeros is not None and self._signed[stage]:
                step, zero = best_grid(values, STREAM_BOUNDS[1])
                self.steps[stage], self.zeros[stage] = step, zero
            else:
                self.steps[stage] = best_step(values.reshape(1, -1), STREAM_BOUNDS).squeeze()
