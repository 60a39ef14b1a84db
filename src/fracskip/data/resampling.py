"""Images brought to a smaller size, to the bit as the native engine does it (docs/bundle.md).

Shapes: B images, H height, W width, C channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import DataError

LARGEST = 1 << 14  # pixels on a side: up to here 64 bits hold what weights are computed from
BITS = 14  # weights of one output add up to 2^BITS


class Axis(NamedTuple):
    """How one axis is resized: output x is a weighted sum of the same number of inputs each.

    Attributes:
        first: The first input of each output, (outputs,).
        weights: Of it and those that follow, int32 (outputs, taps).
    """

    first: NDArray[np.int64]
    weights: NDArray[np.int32]


def resize(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Antialiased bicubic resizing in integers, vertically and then horizontally.

    Args:
        images: Pixels (B, H, W, C).
        size: Height and width to come to, neither larger than the images'.

    Returns:
        Pixels (B, height, width, C).

    Raises:
        DataError: if a size is larger than the images', or they are no such pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"images of shape {images.shape} and type {images.dtype} can't be resized: uint8 "
            "pixels (images, height, width, channels) are needed"
        )
    for name, own, wanted in zip(("height", "width"), images.shape[1:3], size, strict=True):
        if not 1 <= wanted <= own <= LARGEST:
            raise DataError(
                f"images of {name} {own} can't be brought to {wanted}: give 1 to their own "
                f"{name}, which may be {LARGEST} at most"
            )
    rows = _resized(images, axis(images.shape[1], size[0]), 1)
    return _resized(rows, axis(images.shape[2], size[1]), 2)


@lru_cache(maxsize=64)
def axis(own: int, wanted: int) -> Axis:
    """The weights by which an axis of `own` pixels comes to `wanted`, at most as many.

    Catmull-Rom's cubic, as wide as an output: distances are counted in halves of an input's share
    of an output, of which `spacing` lie between two outputs.
    """
    spacing = 2 * own
    centre = (2 * np.arange(wanted, dtype=np.int64) + 1)[:, None] * own
    # Every input within two spacings, and a few beyond, of weight 0.
    taps = min(2 * spacing // wanted + 2, own)
    first = (centre[:, 0] - 2 * spacing) // (2 * wanted)
    first = np.clip(first, 0, own - taps)
    d = abs((2 * (first[:, None] + np.arange(taps)) + 1) * wanted - centre)
    near = 3 * d**3 - 5 * d**2 * spacing + 2 * spacing**3
    far = -(d**3) + 5 * d**2 * spacing - 8 * d * spacing**2 + 4 * spacing**3
    exact = np.where(d < spacing, near, np.where(d < 2 * spacing, far, 0))
    weights = (exact << BITS) // exact.sum(1, keepdims=True)
    weights[np.arange(wanted), weights.argmax(1)] += (1 << BITS) - weights.sum(1)
    for values in (first, weights):
        values.flags.writeable = False
    return Axis(first, weights.astype(np.int32))


def _resized(images: NDArray[np.uint8], table: Axis, position: int) -> NDArray[np.uint8]:
    """Resizes one axis of pixels."""
    broadcast = [1] * images.ndim
    broadcast[position] = -1
    total: NDArray[np.int32] | None = None
    for tap in range(table.weights.shape[1]):
        taken = images.take(table.first + tap, position).astype(np.int32)
        taken *= table.weights[:, tap].reshape(broadcast)
        total = taken if total is None else np.add(total, taken, out=total)
    assert total is not None
    total += 1 << (BITS - 1)
    total >>= BITS
    return total.clip(0, 255).astype(np.uint8)
