"""From a data set's name, as recipes give it, to images of the size that a network takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fracskip.config import FOLDER_PREFIX, ImageConfig
from fracskip.data import store
from fracskip.data.catalog import DATASETS
from fracskip.data.decode import cut_centre, fit
from fracskip.data.decoding import Progress
from fracskip.data.folder import load_folder
from fracskip.data.imageset import ImageSet, check_memory
from fracskip.data.sample import load_sample
from fracskip.errors import DataError


def load_split(
    name: str,
    split: Literal["train", "test"],
    image: ImageConfig,
    *,
    on_corrupt: Literal["error", "skip"] = "error",
    workers: int = 0,
    progress: Progress | None = None,
) -> ImageSet:
    """Loads one split of a data set, at the size and with the channels that `image` asks for.

    Args:
        name: cifar10, cifar100 or fashion-mnist (from the cache), sample (the bundled CIFAR-10
            test images; it has no training split), or folder:PATH (see `load_folder`).
        split: 'train' or 'test'.
        image: Stored images of another size are fitted as `fracskip.data.decode` says, and grey
            and RGB are converted into each other.
        on_corrupt: Of a folder, see `load_folder`.
        workers: Likewise.
        progress: Likewise.

    Returns:
        The images, in the data set's own order.

    Raises:
        DataError: if the name or split is unknown, the data set is not there, is damaged, or is
            too large to hold decoded.
    """
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} is unknown: use 'train' or 'test'")
    if name.startswith(FOLDER_PREFIX):
        path = Path(name.removeprefix(FOLDER_PREFIX))
        return load_folder(path, split, image, on_corrupt, workers=workers, progress=progress)
    if name == "sample":
        if split != "test":
            raise DataError("data set sample has test images alone: train on cifar10 instead")
        return conform(load_sample(), image)
    if name in DATASETS:
        return conform(store.load(name, split), image)
    raise DataError(
        f"data set {name!r} is unknown: use one of {', '.join(DATASETS)}, sample, or "
        f"{FOLDER_PREFIX}PATH"
    )


def conform(dataset: ImageSet, image: ImageConfig) -> ImageSet:
    """Brings a set's images to the size and channels that `image` asks for.

    Returns:
        The set itself where its images are so already.

    Raises:
        DataError: if the result is too large to hold.
    """
    wanted = (*image.size, image.channels)
    if dataset.images.shape[1:] == wanted and not image.resize:
        return dataset
    check_memory(len(dataset), *wanted, name=dataset.name)
    images = np.empty((len(dataset), *wanted), dtype=np.uint8)
    for stored, fitted in zip(dataset.images, images, strict=True):
        picture = Image.fromarray(stored[..., 0] if stored.shape[2] == 1 else stored)
        fitted[...] = fit(picture, image)
    return replace(dataset, images=images)


def central(dataset: ImageSet, image: ImageConfig) -> ImageSet:
    """What `load_split` gives for `image`, of a set that it gave for `image.view`.

    Returns:
        The set itself where nothing is to be cut off.
    """
    if dataset.images.shape[1:3] == image.size:
        return dataset
    return replace(dataset, images=cut_centre(dataset.images, image.size))
