"""Image folders: one folder a class, images of any size, format and channel count.

PATH/train/CLASS/*.jpg     the classes are the folders here, in sorted order
PATH/val/CLASS/*.jpg       read as the test split; PATH/test is preferred where it exists
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from fracskip.config import ImageConfig
from fracskip.data.decoding import Progress, decode_all
from fracskip.data.imageset import ImageSet, check_memory
from fracskip.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_NAMED = 5
"""How many broken files an error names."""


def load_folder(
    path: Path,
    split: Literal["train", "test"],
    image: ImageConfig,
    on_corrupt: Literal["error", "skip"] = "error",
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> ImageSet:
    """Decodes one split of an image folder.

    Args:
        path: The folder with train/ and val/ (or test/) in it.
        split: 'train' or 'test'.
        image: Size and channels to decode to.
        on_corrupt: Whether images that cannot be decoded are an error, or are left out and
            listed in `ImageSet.skipped`.
        workers: Processes that decode; 0 takes threads. The images are the same.
        progress: Called now and then, with the number of images decoded and of all.

    Returns:
        The images, by class and then by file name.

    Raises:
        DataError: if folders or images are missing, the test classes are not among the training
            classes, images are corrupt, or they are too many to hold decoded.
    """
    path = path.expanduser()
    part, classes, files, labels = _find(path, split)
    name = path.resolve().name
    check_memory(len(files), *image.size, image.channels, name=name)
    images, failures = decode_all(files, image, workers, progress)
    if failures and (on_corrupt == "error" or len(failures) == len(files)):
        raise DataError(_corrupt_message(part, len(files), failures))
    kept = np.array([file not in failures for file in files])
    return ImageSet(
        images=images[kept] if failures else images,
        labels=np.array(labels, dtype=np.int64)[kept],
        class_names=tuple(classes),
        name=name,
        split=split,
        source=f"image folder {path}",
        skipped=tuple(file.relative_to(path).as_posix() for file in failures),
    )


def class_counts(path: Path, split: Literal["train", "test"] = "train") -> dict[str, int]:
    """How many images an image folder has of each class; none is decoded.

    Raises:
        DataError: as `load_folder` does, but for what it finds in files.
    """
    _, classes, _, labels = _find(path.expanduser(), split)
    counts = Counter(labels)
    return {name: counts[label] for label, name in enumerate(classes)}


def _find(
    path: Path, split: Literal["train", "test"]
) -> tuple[Path, list[str], list[Path], list[int]]:
    """A split's folder, its classes, its files and their labels."""
    train = path / "train"
    classes = _class_folders(train, path)
    part = train if split == "train" else _test_folder(path)
    if extra := sorted(set(_class_folders(part, path)) - set(classes)):
        raise DataError(
            f"labels of {part} do not match those of {train}: it has extra classes "
            f"{', '.join(extra)}; add them to train or remove them here"
        )
    files, labels = _list_images(part, classes)
    if split == "train" and (empty := sorted(set(classes) - {file.parent.name for file in files})):
        raise DataError(
            f"class folders of {train} without images: {', '.join(empty)}; add images "
            f"({' '.join(SUFFIXES)}) or remove the folders"
        )
    return part, classes, files, labels


def _class_folders(part: Path, path: Path) -> list[str]:
    """Sorted names of the class folders in `part`."""
    try:
        names = sorted(
            entry.name for entry in part.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
    except OSError as error:
        raise DataError(
            f"image folder {path} cannot be read at {part} ({error.strerror}): it needs "
            "train/CLASS/ and val/CLASS/ with images in them"
        ) from None
    if not names:
        raise DataError(f"{part} holds no class folders: put images into {part}/CLASS/")
    return names


def _test_folder(path: Path) -> Path:
    return path / "test" if (path / "test").is_dir() else path / "val"


def _list_images(part: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The image files of `part`, by class and name, and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = part / name
        found = sorted(
            file
            for file in (folder.iterdir() if folder.is_dir() else ())
            if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()
        )
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{part} holds no images: put {' '.join(SUFFIXES)} files into its folders")
    return files, labels


def _corrupt_message(part: Path, count: int, failures: dict[Path, str]) -> str:
    named = "; ".join(list(failures.values())[:MAX_NAMED])
    more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
    return (
        f"{len(failures)} of {count} images in {part} cannot be used: {named}{more}; mend or "
        "remove them, or load the folder with on_corrupt='skip' (in a recipe: data.on_corrupt)"
    )
