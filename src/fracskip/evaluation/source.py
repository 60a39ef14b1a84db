"""Where an evaluation's images come from: a set in memory, or any iterable of labelled batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracskip.data import ImageSet
from fracskip.data.unpacking import naming, unpacked
from fracskip.errors import DataError
from fracskip.evaluation.labelled import (
    ONE_PASS,
    as_array,
    checked_labels,
    is_one_pass,
)

# Images, uint8 (B, H, W, C) or normalised floats (B, C, H, W), and labels: see `data.unpacking`.
Batches: TypeAlias = Iterable[Any]


class Source(Protocol):
    """What an evaluation asks of its data.

    Attributes:
        name: For the record.
        split: Likewise.
        class_names: What labels stand for.
    """

    name: str
    split: str
    class_names: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the images that the last pass gave, (N,)."""
        ...

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """One pass over the images.

        Args:
            size: Images a batch, where the source can choose.
        """
        ...


def source_of(data: ImageSet | Batches, class_names: Sequence[str], passes: int = 1) -> Source:
    """Makes data of either kind ready for evaluation.

    Args:
        data: A set, or an iterable of batches.
        class_names: Of the network, for data that has none.
        passes: How often it will be gone through.

    Raises:
        DataError: if it cannot be gone through so often.
    """
    if isinstance(data, ImageSet):
        return ImageSetSource(data)
    if passes > 1 and is_one_pass(data):
        raise DataError(f"{passes} passes over the data are needed, and {ONE_PASS}")
    return LoaderSource(data, class_names)


class ImageSetSource:
    """A set in memory."""

    def __init__(self, data: ImageSet) -> None:
        self._data = data
        self.name, self.split, self.class_names = data.name, data.split, data.class_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """See `Source`."""
        return self._data.labels

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """See `Source`."""
        return sliced(self._data.images, size)


def sliced(images: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Images (N, ...) in batches of a size; none are one empty batch."""
    for start in range(0, max(len(images), 1), size):
        yield images[start : start + size]


class LoaderSource:
    """Batches as a loader gives them, its own size; none is kept."""

    def __init__(self, data: Batches, class_names: Sequence[str]) -> None:
        self._data = data
        self._seen: list[NDArray[np.int64]] = []
        self.name, self.split, self.class_names = "batches", "given", tuple(class_names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """See `Source`."""
        return np.concatenate(self._seen)

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """See `Source`."""
        self._seen = []
        for number, batch in enumerate(self._data, 1):
            with naming(f"batch {number}"):
                images, labels = unpacked(batch)
                array = as_array(images)
                if array.ndim != 4 or not len(array):
                    raise DataError(
                        f"images of shape {array.shape} do not fit: give (images, channels, "
                        "height, width), or uint8 (images, height, width, channels), at least one "
                        "image"
                    )
                self._seen.append(checked_labels(labels, len(array), len(self.class_names)))
            yield array
        if not self._seen:
            raise DataError(f"the data gave no batch; {ONE_PASS}")
