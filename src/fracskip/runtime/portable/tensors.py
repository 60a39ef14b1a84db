"""What networks are executed with: a bundle's tensors, and images in groups.

Accumulators are sums of integers, so a floating-point convolution gives them exactly as long as no
partial sum can leave the mantissa; a bound over each layer's weights says whether float32 will do
or float64 is needed.
"""

from __future__ import annotations

from collections.abc import Callable

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
