"""What loaders give: batches of images, with labels or without. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fracskip.errors import DataError

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "class", "fine_label", "y")


@contextmanager
def naming(origin: str) -> Iterator[None]:
    """Says in front of a DataError which batch it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None


def unpacked(batch: Any) -> tuple[Any, Any]:
    """A batch's images and labels.

    Args:
        batch: A pair; more than two values, of which the first two count; or a dictionary with an
            image key and a label key, one of each.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(batch, Mapping):
        return _named(batch, IMAGE_KEYS, "images"), _named(batch, LABEL_KEYS, "labels")
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes) and len(batch) >= 2:
        return batch[0], batch[1]
    raise DataError(
        f"a batch is a {type(batch).__name__}: give (images, labels), or a dictionary with keys "
        "such as 'image' and 'label'"
    )


def images_of(batch: Any) -> Any:
    """A batch's images, where labels are not needed.

    Args:
        batch: As `unpacked` takes it; a dictionary without a label key; a sequence of one; or the
            images alone.

    Raises:
        DataError: if it is a dictionary without an image key, or with several; or empty.
    """
    if isinstance(batch, Mapping):
        return _named(batch, IMAGE_KEYS, "images")
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        if not batch:
            raise DataError("a batch is empty: give images, or (images, labels)")
        return batch[0]
    return batch


def _named(batch: Mapping[Any, Any], keys: Sequence[str], what: str) -> Any:
    found = [key for key in keys if key in batch]
    if len(found) != 1:
        given = ", ".join(map(repr, list(batch)[:12])) or "none"
        raise DataError(
            f"a batch has the keys {given}: exactly one of {', '.join(map(repr, keys))} is needed "
            f"for its {what}"
        )
    return batch[found[0]]
