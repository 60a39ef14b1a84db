"""Image folders: one folder a class, images of any size, format and channel count.

PATH/train/CLASS/*.jpg     the classes are the folders here, in sorted order
PATH/val/CLASS/*.jpg       read as the test split; PATH/test is preferred where it exists

A class's folder may hold folders in turn: all images below it are of that class. Images are files
whose names end in one of `SUFFIXES`, in lower or upper case. Names that begin with a dot are left
out; other files are too, and `ImageSet.notes` says how many. To read the test split, train/ is not
needed: without it the classes are the folders of the test split itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fracskip.config import ImageConfig
from fracskip.data.containers import SUFFIXES
from fracskip.data.decoding import Progress, decode_all
from fracskip.data.imageset import ImageSet, check_memory
from fracskip.errors import DataError

MAX_NAMED = 5
"""How many files, classes or suffixes a message names."""

MAX_REASON = 300
"""Characters of what a message says of each."""

Split = Literal["train", "test"]
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


@dataclass(frozen=True)
class _Part:
    """One split of an image folder, before anything is decoded.

    Attributes:
        folder: Where it is.
        classes: Names of the classes, sorted.
        images: Files and their labels, indices into `classes`; by class and then by path.
        notes: What is left out.
    """

    folder: Path
    classes: tuple[str, ...]
    images: list[tuple[Path, int]]
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[int]:
        """One an image."""
        return [label for _, label in self.images]

    def without(self, labels: Iterable[int]) -> list[str]:
        """The classes that are none of `labels`."""
        present = set(labels)
        return [name for label, name in enumerate(self.classes) if label not in present]


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
        path: The folder with train/ and val/ (or test/) in it; of the latter, one is enough for the
            test split.
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
            classes, images are corrupt, no image of a class to train on is left, or they are too
            many to hold decoded.
    """
    part = _find(path, split)
    files, name = [file for file, _ in part.images], path.expanduser().resolve().name
    check_memory(len(files), *image.size, image.channels, name=name)
    images, failures = decode_all(files, image, workers, progress)
    if failures and (on_corrupt == "error" or len(failures) == len(files)):
        raise DataError(_corrupt_message(part.folder, len(files), list(failures.values())))
    kept = np.array([file not in failures for file in files])
    labels = np.array(part.labels, dtype=np.int64)[kept]
    empty = part.without(labels.tolist())
    if split == "train" and empty:
        lost = [failures[file] for file, label in part.images if part.classes[label] in empty]
        raise DataError(
            f"class folders of {part.folder} without an image that can be used: {_some(empty)} "
            f"({_reasons(lost)}); mend the images, or remove the folders"
        )
    notes = [f"{part.folder} has no images of {_some(empty)}"] if empty else []
    return ImageSet(
        images=images[kept] if failures else images,
        labels=labels,
        class_names=part.classes,
        name=name,
        split=split,
        source=f"image folder {path.expanduser()}",
        skipped=tuple(file.relative_to(part.folder.parent).as_posix() for file in failures),
        notes=(*part.notes, *notes),
    )


def class_counts(path: Path, split: Split = "train") -> dict[str, int]:
    """How many images an image folder has of each class; none is decoded.

    Raises:
        DataError: as `load_folder` does, but for what it finds in files.
    """
    part = _find(path, split)
    counts = Counter(part.labels)
    return {name: counts[label] for label, name in enumerate(part.classes)}


def _find(path: Path, split: Split) -> _Part:
    """Finds the images of a split."""
    try:
        path = path.expanduser()
        folder = _folder_of(path, split)
        names = _class_folders(folder)
        train = path / "train"
        classes = _class_folders(train) if os.path.isdir(train) else names
        if extra := sorted(set(names) - set(classes)):
            raise DataError(
                f"labels of {folder} do not match those of {train}: it has extra classes "
                f"{_some(extra)}; add them to train or remove them here"
            )
        found = {name: sorted(_files(folder / name)) for name in names}
        loose = [file for file in folder.iterdir() if _is_image(file) and not file.is_dir()]
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise  # it is a ValueError too
        looked = " or ".join(str(path / name) for name in _FOLDERS[split])
        raise DataError(
            f"image folder {path} cannot be read at {looked} "
            f"({getattr(error, 'strerror', None) or error}): it needs train/CLASS/ and val/CLASS/ "
            "(or test/CLASS/) with images in them"
        ) from None
    pairs = [
        (file, label)
        for label, name in enumerate(classes)
        for file in found.get(name, ())
        if _is_image(file)
    ]
    if not pairs:
        raise DataError(
            f"{folder} holds no images: put {' '.join(SUFFIXES)} files into its folders"
        )
    part = _Part(folder, tuple(classes), pairs, _notes(folder, found.values(), len(loose)))
    if split == "train" and (empty := part.without(part.labels)):
        raise DataError(
            f"class folders of {folder} without images: {_some(empty)}; add images "
            f"({' '.join(SUFFIXES)}) or remove the folders"
        )
    return part


def _folder_of(path: Path, split: Split) -> Path:
    """The folder of a split: the first that exists, or else the last that could."""
    folders = [path / name for name in _FOLDERS[split]]
    return next(filter(os.path.isdir, folders), folders[-1])


def _class_folders(part: Path) -> list[str]:
    """Sorted names of the class folders in `part`."""
    names = sorted(
        entry.name for entry in part.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise DataError(f"{part} holds no class folders: put images into {part}/CLASS/")
    return names


def _files(folder: Path) -> Iterator[Path]:
    """All that is no folder, and not hidden, in a folder and those below it.

    Links to folders are followed, each folder once.
    """
    seen = set()
    for root, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(root, name) for name in names if name[0] != ".")


def _stop(error: OSError) -> None:
    raise error


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.name[0] != "."


def _notes(folder: Path, found: Iterable[list[Path]], loose: int) -> tuple[str, ...]:
    """What is left out of a split because of its name or place.

    Args:
        folder: The split's.
        found: The files in its class folders.
        loose: How many images lie beside the class folders.
    """
    others = Counter(
        file.suffix.lower() or file.name for files in found for file in files if not _is_image(file)
    )
    notes = []
    if others:
        kinds = _some([f"{kind} ({count})" for kind, count in others.most_common()])
        notes.append(
            f"files left out of {folder} because their names are not those of images "
            f"({others.total()}): {kinds}; read are {' '.join(SUFFIXES)}"
        )
    if loose:
        notes.append(f"images left out of {folder} because they are in no class folder: {loose}")
    return tuple(notes)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(name[:MAX_REASON] for name in names[:MAX_NAMED]) + more


def _reasons(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    return "; ".join(reason[:MAX_REASON] for reason in reasons[:MAX_NAMED]) + more


def _corrupt_message(part: Path, count: int, reasons: list[str]) -> str:
    return (
        f"{len(reasons)} of {count} images in {part} cannot be used: {_reasons(reasons)}; mend or "
        "remove them, or load the folder with on_corrupt='skip' (in a recipe: data.on_corrupt)"
    )
