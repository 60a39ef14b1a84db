"""Where an evaluation's images come from: a set in memory, or any iterable of labelled batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.data import ImageSet
from fracskip.errors import DataError

# Images, uint8 (B, H, W, C) or normalised floats (B, C, H, W), and labels (B,).
Batches: TypeAlias = Iterable[tuple[Any, Any]]


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


def source_of(data: ImageSet | Batches, class_names: Sequence[str]) -> Source:
    """Makes data of either kind ready for evaluation.

    Args:
        data: A set, or an iterable that can be gone through again and again.
        class_names: Of the network, for data that has none.
    """
    return HeldSource(data) if isinstance(data, ImageSet) else StreamSource(data, class_names)


class HeldSource:
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


class StreamSource:
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
        for images, labels in self._data:
            array = np.asarray(images)
            self._seen.append(checked_labels(labels, len(array), len(self.class_names)))
            yield array
        if not self._seen:
            raise DataError(
                "the data gave no batch: an iterator can be gone through once only; give a loader "
                "or a list"
            )


def checked_labels(labels: ArrayLike, count: int, classes: int) -> NDArray[np.int64]:
    """One class for each of a batch's images, (B,).

    Raises:
        DataError: if they are of another shape or range.
    """
    found = np.asarray(labels)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"labels of shape {found.shape} and type {found.dtype} do not fit {count} images: give "
            "one class number each"
        )
    if len(found) and not 0 <= found.min() <= found.max() < classes:
        raise DataError(
            f"labels from {found.min()} to {found.max()} do not fit {classes} classes: use 0 to "
            f"{classes - 1}"
        )
    return found.astype(np.int64)
