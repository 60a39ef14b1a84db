"""The integer reference: what a quantised value is, to the bit.

Every other quantiser in fracskip (the fake quantisation of training, the native engine) is held
against these few lines. All arithmetic is float32 with round-half-to-even:

    q = clamp(rint(x · (1 / scale)) + zero_point, q_min, q_max)
    x̂ = (q - zero_point) · scale

The reciprocal is taken first, as kernels do, so the result is defined by single-precision
operations that NumPy, PyTorch and C++ all round alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.errors import ConfigError
from fracskip.options import MAX_BITS, MIN_BITS

TINY_SCALE = np.float32(2.0**-100)  # keeps 1 / scale finite for all-zero tensors


@dataclass(frozen=True)
class IntegerGrid:
    """The integers of one width.

    Attributes:
        bits: Width, 2..16.
        signed: Symmetric around zero, ±(2^(bits-1) - 1), for weights; or 0..2^bits - 1, for
            activations that follow a ReLU and for affine quantisation.

    >>> IntegerGrid(8, signed=True).bounds, IntegerGrid(8, signed=False).bounds
    ((-127, 127), (0, 255))
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(
                f"a grid of {self.bits} bits is unknown: use {MIN_BITS} to {MAX_BITS} bits"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        if self.signed:
            top = 2 ** (self.bits - 1) - 1
            return -top, top
        return 0, 2**self.bits - 1


def affine_parameters(low: float, high: float, bits: int) -> tuple[np.float32, int]:
    """Scale and zero point of an unsigned grid that covers [low, high] and holds 0 exactly.

    Args:
        low: Smallest value to represent (0 is used if it is larger).
        high: Largest value to represent (0 is used if it is smaller).
        bits: Width, 2..16.

    Returns:
        The float32 scale and the zero point in 0..2^bits - 1.
    """
    _, q_max = IntegerGrid(bits, signed=False).bounds
    low_f32, high_f32 = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    scale = max(np.float32((high_f32 - low_f32) / np.float32(q_max)), TINY_SCALE)
    zero_point = int(np.clip(np.rint(-low_f32 * (np.float32(1) / scale)), 0, q_max))
    return scale, zero_point


def quantise(
    x: ArrayLike, scale: ArrayLike, zero_point: int, bounds: tuple[int, int]
) -> NDArray[np.int32]:
    """Real numbers to integers.

    Args:
        x: Values of any shape, taken as float32.
        scale: Positive; a scalar, or an array that broadcasts against `x`.
        zero_point: The integer that stands for 0.
        bounds: Smallest and largest integer.
    """
    inverse = np.float32(1) / np.asarray(scale, np.float32)
    q = np.rint(np.asarray(x, np.float32) * inverse) + np.float32(zero_point)
    low, high = bounds
    clipped: NDArray[np.float32] = np.clip(q, np.float32(low), np.float32(high))
    return clipped.astype(np.int32)


def dequantise(q: ArrayLike, scale: ArrayLike, zero_point: int) -> NDArray[np.float32]:
    """Integers back to the real numbers they stand for, as float32."""
    centred = np.asarray(q, np.int32) - np.int32(zero_point)
    return centred.astype(np.float32) * np.asarray(scale, np.float32)
