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
            that are normalised already, which their range is checked for.
        image: Mean and standard deviation (a network's `spec.image`).
        normalised: Floats are normalised, whatever their range is.

    Returns:
        float32 (B, C, H, W) in channels-last memory, on the images' device.

    Raises:
        DataError: for another type or number of channels, or floats that are pixels (see
            `fracskip.data.normalised`).
    """
    pixels = torch.as_tensor(images)
    if pixels.dim() == 4 and pixels.is_floating_point() and pixels.shape[1] == image.channels:
        if pixels.numel() and not normalised:
            low, high = torch.aminmax(pixels.detach())
            check_normalised(float(low), float(high), image)
        return pixels.float()
    if pixels.dim() != 4 or pixels.dtype != torch.uint8 or pixels.shape[3] != image.channels:
        raise DataError(
            f"images of shape {tuple(pixels.shape)} and type {pixels.dtype} do not fit: uint8 "
            f"(images, height, width, {image.channels}) is needed, or normalised floats "
            f"(images, {image.channels}, height, width)"
        )
    std = torch.tensor(image.std, device=pixels.device)
    mean = torch.tensor(image.mean, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
