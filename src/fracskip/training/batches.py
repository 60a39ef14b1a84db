"""Training images, shuffled and varied, batch by batch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fracskip.config import DataConfig
from fracskip.data import ImageSet
from fracskip.dynamic import preprocess
from fracskip.training.randomness import generator_at


def augment(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops out of zero-padded images, and mirror images.

    Args:
        pixels: uint8 (B, H, W, C).
        padding: Zero pixels added on each side.
        flip: Mirror each image with probability 1/2.
        generator: A CPU generator.

    Returns:
        uint8 (B, H, W, C).
    """
    count, height, width, _ = pixels.shape
    device = pixels.device
    shift = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator).to(device)
    mirror = torch.randint(0, 2, (count, 1), generator=generator).to(device).bool() & flip
    columns = torch.arange(width, device=device).expand(count, width)
    columns = torch.where(mirror, columns.flip(1), columns) + shift[1]
    rows = torch.arange(height, device=device) + shift[0]
    padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    image = torch.arange(count, device=device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]


def erase(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
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
        images: The training images, held on the device as uint8.
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
            self._order = (place, torch.randperm(len(self._labels), generator=draw))
        return self._order[1]

    def get(self, stage: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images, normalised (B, C, H, W), and labels (B,)."""
        order = self._permutation(stage, epoch)
        rows = order[step * self._size : (step + 1) * self._size].to(self._pixels.device)
        draw = generator_at(self._seed, "augment", stage, epoch, step)
        pixels = augment(self._pixels[rows], self._config.crop_padding, self._config.flip, draw)
        return preprocess(pixels, self._config.image), self._labels[rows]
