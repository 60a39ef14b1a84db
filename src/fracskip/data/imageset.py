"""Labelled images in memory, and how validation images are carved from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import DataError

MAX_BYTES = 8 * 2**30
"""The largest decoded set that is held in memory."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with one label each.

    Attributes:
        images: uint8 (N, H, W, C), C-contiguous; C is 1 (grey) or 3 (RGB).
        labels: int64 (N,), indices into `class_names`.
        class_names: What the labels stand for.
        name: The data set's display name, such as 'CIFAR-10'.
        split: 'train', 'validation' or 'test'.
        source: Where the images came from, in words.
        skipped: Files that were left out because they could not be decoded.
        notes: What else may surprise whoever uses the set, a sentence each.

    Raises:
        DataError: if a dtype or shape is another, or a label has no class name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    split: str
    source: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(
                f"images of {self.name} are {images.dtype} {images.shape}: give uint8 "
                "(N, H, W, C) with 1 or 3 channels"
            )
        if not images.flags.c_contiguous:
            raise DataError(
                f"images of {self.name} are not contiguous: pass numpy.ascontiguousarray of them"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of {self.name} are {labels.dtype} {labels.shape}: give int64 "
                f"({len(images)},), one label an image"
            )
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise DataError(f"class names of {self.name} are empty or repeat: give each class one")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise DataError(
                f"labels of {self.name} run from {labels.min()} to {labels.max()}: with "
                f"{len(self.class_names)} class names they must lie in "
                f"0..{len(self.class_names) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> ImageSet:
        """The images at `indices`, in that order, as a copy.

        Raises:
            DataError: if an index is none of 0..N-1.
        """
        chosen = np.asarray(indices) if len(indices) else np.empty(0, dtype=np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise DataError(
                f"a subset of {self.name} takes a flat list of indices; got {chosen.dtype} "
                f"{chosen.shape}: pass numpy.flatnonzero of a mask"
            )
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise DataError(
                f"indices from {chosen.min()} to {chosen.max()} are not all in {self.name}: use "
                f"0..{len(self) - 1}"
            )
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def evenly(self, count: int) -> ImageSet:
        """So many of the images, evenly spaced: sets that are sorted by class keep their classes.

        Returns:
            The set itself where it has no more.
        """
        if count >= len(self):
            return self
        return self.subset(np.linspace(0, len(self) - 1, count).round().astype(int))


def split_validation(train: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Carves `count` validation images from a training set, in proportion to its classes.

    Which images go follows from the labels and the seed alone: each image draws a raw 64-bit
    number from PCG64, and the smallest numbers of a class go. Raw numbers, unlike numpy's
    shuffles, stay the same from release to release. Every class keeps at least one image to
    train on, and both parts keep the order that the images had.

    Args:
        train: The training set.
        count: Images to carve.
        seed: Of the draw, 0 or more.

    Returns:
        What is left to train on, and the validation images.

    Raises:
        DataError: if `count` is below 1, or so large that a class would be used up.
    """
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    spare = np.maximum(sizes - 1, 0)
    available = int(spare.sum())
    if not 1 <= count <= available:
        raise DataError(
            f"{count} validation images cannot be carved from {train.name}: ask for 1 to "
            f"{available}, so that each class keeps one of the {len(train)} training images"
        )
    quotas, remainders = np.divmod(spare * count, available)
    leftover = count - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:leftover]] += 1

    draws = np.random.PCG64(seed).random_raw(len(train))
    by_class_then_draw = np.lexsort((draws, train.labels))
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank_in_class = np.empty(len(train), dtype=np.int64)
    rank_in_class[by_class_then_draw] = np.arange(len(train)) - starts
    goes = rank_in_class < quotas[train.labels]
    rest, carved = np.flatnonzero(~goes), np.flatnonzero(goes)
    return train.subset(rest), replace(train.subset(carved), split="validation")


def check_memory(count: int, height: int, width: int, channels: int, name: str) -> None:
    """Refuses a set that is too large to hold decoded.

    Raises:
        DataError: if count images of that shape exceed `MAX_BYTES`.
    """
    size = count * height * width * channels
    if size > MAX_BYTES:
        raise DataError(
            f"{name} would take {size / 2**30:.1f} GiB decoded ({count} images of "
            f"{height}x{width}x{channels}); at most {MAX_BYTES / 2**30:g} GiB are allowed: choose "
            "a smaller image.size or fewer images"
        )
