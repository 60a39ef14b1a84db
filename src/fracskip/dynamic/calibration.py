"""Calibration images: whatever a caller hands over, as normalised batches of one size.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.config import IMAGENET_MEAN, IMAGENET_STD, ImageConfig
from fracskip.data import ImageSet
from fracskip.data.resampling import resize
from fracskip.data.unpacking import images_of, naming
from fracskip.dynamic.preprocess import preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.models.registry import normalisation_of

MOST = 1024  # images that are used; more of a loader are not read
FEWEST = 8  # images below which ranges are a guess
BATCH = 64  # images that go through a network at a time
NONE_GIVEN = (
    "there is no calibration image: give some that the network is for, 64 to 512 are good; no "
    "labels are needed"
)


def batches_of(
    module: nn.Module,
    images: Any,
    image: ImageConfig | None = None,
    size: int | tuple[int, int] | None = None,
) -> tuple[list[Tensor], ImageConfig]:
    """Makes calibration images ready for a network.

    Args:
        module: The network, whose configuration (timm's) may say how images are normalised.
        images: uint8 pixels (N, H, W, C); normalised floats (N, C, H, W); an `ImageSet`; or an
            iterable of batches of either kind, with labels, which are not looked at, or without.
            At most `MOST` images are used: the first ones of an iterable, evenly spaced ones of an
            array.
        image: Size and normalisation of what the network takes. If not given: the images' own
            size, normalised as the network's `pretrained_cfg` says, else as ImageNet's are.
        size: Height and width (one number: of a square), in place of the image's.

    Returns:
        Normalised images, (B, C, H, W) each, and what they are.

    Raises:
        DataError: if there is no image, or they are none that the network takes.
        ConfigError: if the size is none.
    """
    found: list[Tensor] = []
    count = 0
    for number, given in enumerate(_given(images), 1):
        with naming(f"calibration batch {number}"):
            pixels = _array(images_of(given))
            if image is None:
                image = _image(module, pixels)
            if size is not None:
                image, size = _sized(image, size), None
            normalised = preprocess(_brought_to(pixels, image), image)
        if normalised.shape[2:] != torch.Size(image.size):
            raise DataError(
                f"normalised images of {normalised.shape[2]}x{normalised.shape[3]} are given, the "
                f"network takes {image.size[0]}x{image.size[1]}: give them at that size, or uint8 "
                "pixels, which are brought to it"
            )
        found.append(normalised[: MOST - count])
        count += len(normalised)
        if count >= MOST:
            break
    if not count or image is None:
        raise DataError(NONE_GIVEN)
    if count < FEWEST:
        warnings.warn(
            f"{count} calibration images say little of the ranges of values in a network: give "
            f"{FEWEST} at least, 64 to 512 are good",
            stacklevel=3,
        )
    together = torch.cat(found)
    parts = math.ceil(len(together) / BATCH)
    # Ranges are initialised on the first batch: of a sorted set, too, it has a part of everything.
    return [together[start::parts] for start in range(parts)], image


def _given(images: Any) -> Iterator[Any]:
    """The batches."""
    if isinstance(images, ImageSet):
        images = images.images
    if hasattr(images, "shape") or isinstance(images, Mapping):
        images = images_of(images)
        yield images[:: max(1, math.ceil(len(images) / MOST))] if len(images.shape) else images
        return
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise DataError(
            f"calibration images are a {type(images).__name__}: give uint8 pixels (images, height, "
            "width, channels), normalised floats (images, channels, height, width), or batches of "
            "either"
        )
    yield from images


def _array(images: Any) -> Tensor:
    """Images as a tensor on the CPU, (B, H, W, C) or (B, C, H, W)."""
    try:
        array = torch.as_tensor(images).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"images are a {type(images).__name__} that is no array ({error}): give a tensor or an "
            "array"
        ) from None
    if array.dim() != 4:
        raise DataError(
            f"images of shape {tuple(array.shape)} do not fit: give uint8 (images, height, width, "
            "channels) or normalised floats (images, channels, height, width)"
        )
    return array


def _image(module: nn.Module, images: Tensor) -> ImageConfig:
    """What images are by themselves, normalised as a network of timm says, or as ImageNet's."""
    first = images.is_floating_point()
    channels, *size = images.shape[1:] if first else (*images.shape[3:], *images.shape[1:3])
    if channels not in (1, 3) or min(size) < 8:
        raise DataError(
            f"images of shape {tuple(images.shape)} do not fit: 1 or 3 channels and 8 pixels a "
            f"side at least are needed; {'normalised floats have' if first else 'uint8 has'} the "
            f"channels {'first' if first else 'last'}"
        )
    usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    mean, std = normalisation_of(module, channels) or usual
    return ImageConfig(size=(size[0], size[1]), channels=channels, mean=mean, std=std)


def _sized(image: ImageConfig, size: int | tuple[int, int]) -> ImageConfig:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(each, int) and each >= 8 for each in pair):
        raise ConfigError(f"size {size!r} is none: give pixels, 8 at least, or (height, width)")
    return ImageConfig.model_validate({**image.model_dump(), "size": pair, "resize": 0})


def _brought_to(images: Tensor, image: ImageConfig) -> Tensor:
    """Pixels of the network's size; floats are left as they are."""
    if images.dtype != torch.uint8 or tuple(images.shape[1:3]) == image.size:
        return images
    if images.shape[3] != image.channels:
        return images  # `preprocess` says what is wrong
    if any(own < wanted for own, wanted in zip(images.shape[1:3], image.size, strict=True)):
        raise DataError(
            f"images of {images.shape[1]}x{images.shape[2]} are smaller than the network's "
            f"{image.size[0]}x{image.size[1]}: give them at that size or larger"
        )
    return torch.from_numpy(resize(images.numpy(), image.size))
