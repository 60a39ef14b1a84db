"""Images as arrays, and class numbers. Tensors are taken on any device, without torch.

Shapes: B images, N classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import ConfigError, DataError

ONE_PASS = (
    "an iterator can be gone through once only: give a loader, a list of batches, or an object "
    "whose __iter__ begins anew"
)


def is_one_pass(data: object) -> bool:
    """Whether it is an iterator, such as a generator: there is no second pass over it."""
    return isinstance(data, Iterator)


def as_array(values: Any) -> NDArray[Any]:
    """Numbers as NumPy's; of a tensor, whatever its device and precision.

    Raises:
        DataError: if they are none.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()  # NumPy knows no bfloat16
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.empty(0, dtype=object)  # rows of several lengths
    if found.dtype.kind not in "biuf":
        raise DataError(f"a {type(values).__name__} is no array of numbers: give a tensor")
    return found


def checked_labels(labels: Any, count: int, classes: int) -> NDArray[np.int64]:
    """One class for each of a batch's images, (B,).

    Args:
        labels: Class numbers (B,) or (B, 1), integers of any kind; or one-hot (B, N).
        count: B.
        classes: N.

    Raises:
        ConfigError: if the network has no two classes to tell apart.
        DataError: if they are of another shape or range, or soft.
    """
    if classes < 2:
        raise ConfigError(
            f"the network has {classes} logit: two at least are needed, one a class; for two "
            "classes give its last layer two outputs in place of one"
        )
    found = as_array(labels)
    if found.shape == (count, classes):
        found = _from_one_hot(found)
    elif found.shape == (count, 1):
        found = found[:, 0]
    if found.shape != (count,) or found.dtype.kind not in "biu":
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


def _from_one_hot(rows: NDArray[Any]) -> NDArray[Any]:
    if not (((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()):
        raise DataError(
            f"labels of shape {rows.shape} are soft, or name several classes an image: give one "
            "class number each (for smoothed labels, a recipe's label_smoothing)"
        )
    return np.asarray(rows.argmax(1))
