"""Pixels to a network's input."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.config import ImageConfig
from fracskip.errors import DataError


def preprocess(images: NDArray[Any] | Tensor, image: ImageConfig) -> Tensor:
    """Normalises images: (pixel / 255 - mean) / std.

    Args:
        images: uint8 (B, H, W, C), as `fracskip.data` gives them. Floats (B, C, H, W) are taken to
            be normalised already.
        image: Mean and standard deviation (a network's `spec.image`).

    Returns:
        float32 (B, C, H, W) in channels-last memory, on the images' device.

    Raises:
        DataError: for another type or number of channels.
    """
    pixels = torch.as_tensor(images)
    if pixels.dim() == 4 and pixels.is_floating_point() and pixels.shape[1] == image.channels:
        return pixels.float()
    if pixels.dim() != 4 or pixels.dtype != torch.uint8 or pixels.shape[3] != image.channels:
        raise DataError(
            f"images of shape {tuple(pixels.shape)} and type {pixels.dtype} do not fit: uint8 "
            f"(images, height, width, {image.channels}) is needed"
        )
    std = torch.tensor(image.std, device=pixels.device)
    mean = torch.tensor(image.mean, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
