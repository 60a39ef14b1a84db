"""What a session is handed, held against what its network takes.

Shapes: B images, C channels, H height, W width, L gated blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.config import ImageConfig
from fracskip.data.normalised import NORMALISE, check_normalised
from fracskip.errors import ConfigError, DataError
from fracskip.runtime.plan import Plan

Images = NDArray[np.uint8] | NDArray[np.float32]


def checked_images(images: Any, image: ImageConfig, normalised: bool) -> Images:
    """Images as an engine takes them, C-contiguous.

    Args:
        images: What was given.
        image: What the network takes.
        normalised: Floats are normalised, whatever their range is.

    Raises:
        DataError: if they are of another type or shape, not finite, or pixels as floats.
    """
    wanted = (*image.size, image.channels)
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"images of type {type(images).__name__} do not fit: a NumPy array "
            f"{_batch_of(wanted)} is needed"
        )
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"images of type {images.dtype} do not fit: give uint8 pixels (0 to 255), or float32 "
            f"that is normalised: {NORMALISE}, with the session's image"
        )
    if images.shape[1:] != wanted or images.ndim != 4:
        raise DataError(
            f"images of shape {images.shape} do not fit: {_batch_of(wanted)} is needed; a "
            "single image goes in as image[None]"
        )
    if images.dtype == np.float32 and images.size:
        _check_floats(images, image, normalised)
    return np.ascontiguousarray(images)


def _check_floats(images: NDArray[np.float32], image: ImageConfig, normalised: bool) -> None:
    low, high = float(images.min()), float(images.max())  # NaN if any value is
    if not np.isfinite(high - low):
        bad = sorted({int(row) for row in np.argwhere(~np.isfinite(images))[:, 0]})
        if bad:
            raise DataError(
                f"{len(bad)} of {len(images)} images hold NaN or infinite values, the first is "
                f"image {bad[0]}: leave them out"
            )
    if not normalised:
        check_normalised(low, high, image)


def checked_decisions(decisions: ArrayLike, count: int, plan: Plan) -> NDArray[np.uint8]:
    """Decisions (B, L) as an engine takes them.

    Raises:
        ConfigError: if they are none that the network can execute.
    """
    values, shape = np.asarray(decisions), (count, len(plan.gated_names))
    if values.shape != shape or values.dtype.kind not in "iu":
        raise ConfigError(
            f"decisions of shape {values.shape} and type {values.dtype} do not fit: integers "
            f"of shape {shape} are needed"
        )
    options, signed = len(plan.option_set), values.dtype.kind == "i"
    if values.size and (values.max() >= options or (signed and values.min() < 0)):
        raise ConfigError(
            f"decisions from {values.min()} to {values.max()} do not fit: option indices from "
            f"0 to {options - 1} are needed"
        )
    for column in np.flatnonzero(plan.masks[:, 0]):
        if (values[:, column] == 0).any():
            raise ConfigError(
                f"block {plan.gated_names[column]} has no shortcut and can't be skipped: "
                "choose a width"
            )
    return np.ascontiguousarray(values, dtype=np.uint8)


def _batch_of(shape: tuple[int, ...]) -> str:
    return f"(images, {', '.join(map(str, shape))})"
