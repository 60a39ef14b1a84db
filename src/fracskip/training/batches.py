"""Training images, shuffled and varied, batch by batch."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fracskip.config import DataConfig
from fracskip.data import ImageSet
from fracskip.dynamic import preprocess
from fracskip.training.balance import balanced_order
from fracskip.training.randomness import generator_at

WIDEST = 4 / 3  # proportions of a resized crop, over its image's; the narrowest is the inverse


def crop_padded(
    pixels: Tensor, size: tuple[int, int], padding: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """Random crops out of zero-padded images, and mirror images.

    Args:
        pixels: uint8 (B, H, W, C).
        size: Height and width of the crops.
        padding: Zero pixels added on each side.
        flip: Mirror each image with probability 1/2.
        generator: A CPU generator.

    Returns:
        uint8 (B, *size, C).
    """
    count, device = len(pixels), pixels.device
    # Rows are drawn before columns.
    top, left = (
        torch.randint(0, inside + 2 * padding - wanted + 1, (count, 1), generator=generator)
        for inside, wanted in zip(pixels.shape[1:3], size, strict=True)
    )
    mirror = torch.randint(0, 2, (count, 1), generator=generator).to(device).bool() & flip
    columns = torch.arange(size[1], device=device).expand(count, size[1])
    columns = torch.where(mirror, columns.flip(1), columns) + left.to(device)
    rows = torch.arange(size[0], device=device) + top.to(device)
    padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    image = torch.arange(count, device=device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]


def crop_resized(
    pixels: Tensor,
    size: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    generator: torch.Generator,
) -> Tensor:
    """Parts of random area and proportions, each brought to one size, and mirror images.

    What Szegedy et al., "Going Deeper with Convolutions", 2014, train with. Resampling is bilinear,
    and reaches further where the crop shrinks (antialiasing): a weighted mean over rows, then over
    columns, which is a product of matrices for each image.

    Args:
        pixels: uint8 (B, H, W, C).
        size: Height and width of the crops.
        scale: Least and largest share of an image's area; a side that would be longer than the
            image is as long as the image.
        flip: Mirror each image with probability 1/2.
        generator: A CPU generator.

    Returns:
        uint8 (B, *size, C).
    """
    count, device = len(pixels), pixels.device
    draws = torch.rand(4, count, generator=generator)
    mirror = torch.randint(0, 2, (count,), generator=generator).bool() & flip
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    # Width over height, of the crop over that of the image: as often 4/3 as 3/4.
    aspect = torch.exp(math.log(WIDEST) * (2 * draws[1] - 1))
    sides = ((area / aspect).sqrt(), (area * aspect).sqrt())
    rows, columns = (
        _resampling(side.clamp_max(1), place, inside, wanted)
        for side, place, inside, wanted in zip(
            sides, draws[2:], pixels.shape[1:3], size, strict=True
        )
    )
    columns = torch.where(mirror[:, None, None], columns.flip(1), columns)
    images = pixels.permute(0, 3, 1, 2).float()
    cropped = rows.to(device)[:, None] @ images @ columns.to(device).mT[:, None]
    return cropped.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _resampling(side: Tensor, place: Tensor, inside: int, wanted: int) -> Tensor:
    """The weight of each pixel along one axis in each pixel of the crop.

    Args:
        side: Share of the axis that the crop takes, (B,).
        place: Share of what remains that lies before it, (B,).
        inside: Pixels of the image.
        wanted: Pixels of the crop.

    Returns:
        (B, wanted, inside); each row sums to 1.
    """
    length = (side * inside)[:, None, None]
    start = (place * (1 - side) * inside)[:, None, None]
    step = length / wanted  # pixels of the image to one of the crop
    centre = start + (torch.arange(wanted)[:, None] + 0.5) * step
    distance = (torch.arange(inside) + 0.5 - centre).abs()
    weight = (1 - distance / step.clamp_min(1)).clamp_min(0)
    return weight / weight.sum(2, keepdim=True)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blanks a square of each image (DeVries and Taylor, "Cutout", 2017); may lie over the edge.

    Args:
        images: Normalised (B, C, H, W).
        side: Of the square, in pixels; 0 leaves the images as they are.
        generator: A CPU generator.

    Returns:
        (B, C, H, W), 0 in the squares.
    """
    if not side:
        return images
    count, _, height, width = images.shape
    masks = []
    for size in (height, width):
        centre = torch.randint(0, size, (count, 1), generator=generator).to(images.device)
        first = centre - side // 2
        places = torch.arange(size, device=images.device)
        masks.append((places >= first) & (places < first + side))
    square = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return images.masked_fill(square, 0.0)


class TrainingBatches(Protocol):
    """What stages ask of their training images.

    Attributes:
        steps: Batches an epoch.
    """

    steps: int

    def get(self, stage: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images, normalised (B, C, H, W), and labels (B,)."""
        ...


class Labelled(Protocol):
    """What calibration asks of its validation images: see `fracskip.data.ImageSet`."""

    @property
    def images(self) -> NDArray[Any]:
        """uint8 (N, H, W, C), or normalised floats (N, C, H, W)."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,)."""
        ...


class Batches:
    """Draws training batches; the same (epoch, step) always gives the same batch.

    Args:
        images: The training images, of the size of `config.image.view`, held on the device as
            uint8.
        config: How they are varied.
        batch_size: Images a batch; a last, smaller batch is left out.
        seed: Of the run.
        device: Where the images are held.
    """

    def __init__(
        self, images: ImageSet, config: DataConfig, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self._pixels = torch.from_numpy(images.images).to(device)
        self._labels = torch.from_numpy(images.labels).to(device)
        self._config = config
        self._size = min(batch_size, len(images))
        self._seed = seed
        self._order: tuple[tuple[str, int], Tensor] | None = None
        self.steps = len(images) // self._size

    def _permutation(self, stage: str, epoch: int) -> Tensor:
        place = (stage, epoch)
        if self._order is None or self._order[0] != place:
            draw = generator_at(self._seed, "order", *place)
            if self._config.balance == "sample":
                order = balanced_order(self._labels.cpu(), draw)
            else:
                order = torch.randperm(len(self._labels), generator=draw)
            self._order = (place, order)
        return self._order[1]

    def get(self, stage: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images, normalised (B, C, H, W), and labels (B,)."""
        order = self._permutation(stage, epoch)
        rows = order[step * self._size : (step + 1) * self._size].to(self._pixels.device)
        draw = generator_at(self._seed, "augment", stage, epoch, step)
        pixels = self._varied(self._pixels[rows], draw)
        return preprocess(pixels, self._config.image), self._labels[rows]

    def _varied(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        config = self._config
        size, flip = config.image.size, config.flip
        if config.augment == "resized":
            return crop_resized(pixels, size, config.crop_scale, flip, draw)
        return crop_padded(pixels, size, config.crop_padding, flip, draw)
