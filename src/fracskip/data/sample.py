"""The bundled sample: 1,000 CIFAR-10 test images, for trying things out without a download.

They are the first 100 of each class, in test order, and keep that order: any run of them mixes
the classes. Stored without loss as one sheet, 40 tiles of 32 x 32 a row, beside a JSON file with
labels, the images' indices in the test set, and the SHA-256 of the decoded array.
`tools/make_sample.py` makes both files.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fracskip.data.decode import open_picture
from fracskip.data.imageset import ImageSet
from fracskip.data.store import digest
from fracskip.errors import DataError

SAMPLE = "CIFAR-10 sample"  # its title
SHEET, NOTES = "cifar10_sample.png", "cifar10_sample.json"
PER_CLASS = 100
COLUMNS = 40
SIDE = 32

Index = Annotated[int, Field(ge=0)]


class SampleNotes(BaseModel):
    """What the sample's JSON file says.

    Attributes:
        source: Where the images come from, in words.
        sha256: Of the decoded uint8 array (N, 32, 32, 3).
        class_names: What the labels stand for.
        labels: One an image.
        test_indices: Where each image is in the CIFAR-10 test set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    sha256: str
    class_names: tuple[str, ...]
    labels: tuple[Index, ...]
    test_indices: tuple[Index, ...]


def to_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lays tiles (N, 32, 32, 3) out in rows of `COLUMNS`, (N / COLUMNS * 32, COLUMNS * 32, 3)."""
    tiles = images.reshape(-1, COLUMNS, SIDE, SIDE, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIDE, 3)


def from_sheet(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Takes a sheet apart again: the inverse of `to_sheet`."""
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles).reshape(-1, SIDE, SIDE, 3)


def load_sample() -> ImageSet:
    """Loads the bundled images, uint8 (1000, 32, 32, 3), and verifies them.

    Raises:
        DataError: if the installed files are missing or damaged.
    """
    assets = files("fracskip") / "assets"
    try:
        notes = SampleNotes.model_validate_json((assets / NOTES).read_bytes())
        images = from_sheet(np.asarray(open_picture((assets / SHEET).read_bytes())))
    except (OSError, ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the bundled sample cannot be read ({reason}): reinstall fracskip"
        ) from error
    if digest(images) != notes.sha256:
        raise DataError("the bundled sample is damaged (its SHA-256 differs): reinstall fracskip")
    return ImageSet(
        images=images,
        labels=np.array(notes.labels, dtype=np.int64),
        class_names=notes.class_names,
        name=SAMPLE,
        split="test",
        source=notes.source,
    )
