"""Pixels to a network's input."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.config import ImageConfig
from fracskip.data.normalised import check_normalised
from fracskip.errors import DataError


def preprocess(
    images: NDArray[Any] | Tensor, image: ImageConfig, *, normalised: bool = False
) -> Tensor:
    """Normalises images: (pixel / 255 - mean) / std.

    Args:
        images: uint8 pixels (B, H, W, C), as `fracskip.data` gives them; or floats (B, C, H, W)
            that are normalised already: they have to be finite, and their range is checked.
        image: Mean and standard deviation (a network's `spec.image`).
        normalised: Floats are normalised, whatever their range is.

    Returns:
        float32 (B, C, H, W) in channels-last memory, on the images' device.

    Raises:
        DataError: for another type or number of channels, or floats that are pixels (see
            `fracskip.data.normalised`), NaN or infinite.
    """
    try:
        pixels = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"images are a {type(images).__name__} that is no array ({error}): give a tensor or an "
            "array"
        ) from None
    fits = pixels.dim() == 4
    if fits and pixels.is_floating_point() and pixels.shape[1] == image.channels:
        if not bool(pixels.isfinite().all()):
            raise DataError("images hold NaN or infinite values: find out which, and leave it out")
        if pixels.numel() and not normalised:
            low, high = torch.aminmax(pixels.detach())
            check_normalised(float(low), float(high), image)
        return pixels.float()
    if not (fits and pixels.dtype == torch.uint8 and pixels.shape[3] == image.channels):
        raise DataError(
            f"images of shape {tuple(pixels.shape)} and type {pixels.dtype} do not fit: uint8 "
            f"(images, height, width, {image.channels}) or normalised floats (images, "
            f"{image.channels}, height, width) are needed; fracskip.preprocess "
            "makes floats of pixels"
        )
    std = torch.tensor(image.std, device=pixels.device)
    mean = torch.tensor(image.mean, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
