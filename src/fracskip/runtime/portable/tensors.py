"""What both kinds of network are executed with: a bundle's tensors, and levels.

Accumulators are sums of integers, so a floating-point convolution gives them exactly as long as no
partial sum can leave the mantissa; a bound over each layer's weights says whether float32 will do
or float64 is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fracskip.runtime.bundle import Bundle, furthest

EXACT_IN_FLOAT32 = 1 << 24


class Tensors:
    """A bundle's tensors by name."""

    def __init__(self, bundle: Bundle) -> None:
        self._arrays = bundle.tensors

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())


def exact_type(weight: Tensor) -> torch.dtype:
    """The narrowest type that holds every sum of int8 weights (O, ...) and levels exactly."""
    return torch.float64 if furthest(weight.numpy()) >= EXACT_IN_FLOAT32 else torch.float32


def to_levels(y: Tensor, bits: int) -> Tensor:
    """Values in units of a grid to its levels, in place."""
    return y.round_().clamp_(0, 2**bits - 1)


def route(x: Tensor, choice: Tensor, execute: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Each image's own option, images grouped: (B, C, H, W), (B,) -> (B, C', H', W').

    Args:
        x: What flows into a block.
        choice: Option indices.
        execute: One option for all images.
    """
    present = np.unique(choice.numpy()).tolist()
    if len(present) == 1:
        return execute(x, present[0])
    out: Tensor | None = None
    for option in present:
        rows = (choice == option).nonzero().squeeze(1)
        part = execute(x[rows], option)
        if out is None:
            out = part.new_empty((len(x), *part.shape[1:])).contiguous(
                memory_format=torch.channels_last
            )
        out[rows] = part
    assert out is not None
    return out


class Trunk(Protocol):
    """A network's way from images to logits, from one gated block to the next."""

    def begin(self, images: Tensor) -> Tensor:
        """What the first gated block sees of normalised images (B, C, H, W)."""
        ...

    def pool(self, gated: int, x: Tensor) -> Tensor:
        """What a gate sees of what its block sees: means over height and width, (B, C)."""
        ...

    def execute(self, gated: int, x: Tensor, choice: Tensor) -> Tensor:
        """A gated block, each image by its own option (B,), and what lies before the next."""
        ...

    def head(self, x: Tensor) -> Tensor:
        """The logits (B, N) from what the last block gives."""
        ...

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """(block, option, what executes each convolution)."""
        ...
