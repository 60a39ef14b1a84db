"""What steps of a traced network become: a program of operations, and where its terms come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fracskip.models.padding import NO_PADDING, Padding
from fracskip.runtime.operations import Op

Layout = Literal["first", "last", "flat"]
Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Value:
    """A value of a program.

    Attributes:
        index: Its number there.
        layout: Where the traced network has the channels: first, last, or nothing but them.
        shape: The traced network's, for one image.
        padding: Zeros around it that are in the shape, but that no operation has added yet.
    """

    index: int
    layout: Layout
    shape: tuple[int, ...]
    padding: Padding = NO_PADDING

    @property
    def channels(self) -> int:
        """How many it has."""
        return self.shape[-1] if self.layout == "last" else self.shape[1]

    @property
    def is_pixel(self) -> bool:
        """Whether it has no height and width."""
        return math.prod(self.shape) == self.channels


@dataclass(frozen=True)
class Weighted:
    """A convolution or linear layer and the BatchNorm that folds into it."""

    path: str
    layer: nn.Conv2d | nn.Linear
    norm: Norm | None = None


@dataclass(frozen=True)
class Scaled:
    """A gain and an offset of each channel, (C,) each."""

    gain: Tensor
    bias: Tensor


Source = Weighted | Scaled | Norm | None
"""Where an operation's tensors come from."""


@dataclass(frozen=True)
class Lowered:
    """A program and where its tensors come from.

    Attributes:
        ops: Its operations.
        sources: Of each: what has its terms.
        output: What it gives.
    """

    ops: tuple[Op, ...]
    sources: tuple[Source, ...]
    output: Value
