"""A caller's loaders as stages and validation take them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.config import ModelSpec
from fracskip.data.unpacking import naming, unpacked
from fracskip.dynamic import preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation.labelled import ONE_PASS, checked_labels, is_one_pass

Loader = Iterable[Any]
_END = object()


@dataclass(frozen=True)
class ValidationSet:
    """Validation images in memory, as the network takes them.

    Attributes:
        images: Normalised float32 (N, C, H, W).
        labels: (N,).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int = 250) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Images and labels, so many at a time."""
        return [
            (self.images[start : start + size], self.labels[start : start + size])
            for start in range(0, len(self), size)
        ]


def taken(
    batch: Any, spec: ModelSpec, origin: str, normalised: bool = False
) -> tuple[Tensor, NDArray[np.int64]]:
    """A loader's batch: normalised images (B, C, H, W), and class numbers (B,).

    Args:
        batch: See `fracskip.data.unpacking.unpacked`; images as `fracskip.preprocess` takes
            them.
        spec: Of the network.
        origin: Which batch it is, for errors.
        normalised: Floats are normalised, whatever their range is.

    Raises:
        ConfigError: if the network has no two classes.
        DataError: if images or labels do not fit; images are pixels as floats, or hold NaN; labels
            are soft.
    """
    with naming(origin):
        given, labels = unpacked(batch)
        images = preprocess(given, spec.image, normalised=normalised).detach()
        if not len(images):
            raise DataError("a batch holds no images: give at least one image")
        return images, checked_labels(labels, len(images), len(spec.class_names))


class LoaderBatches:
    """A loader's batches as stages ask for them: in order, from the first, for each purpose.

    A pass that ends before its epoch is followed by another one.

    Args:
        loader: Of batches, to be gone through again and again; see `taken`.
        device: Where steps run.
        spec: Of the network.
        steps: Batches an epoch; by default the loader's length.
        normalised: See `taken`.

    Raises:
        ConfigError: if it has no length and none is given, or can be gone through once only.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        spec: ModelSpec,
        steps: int | None = None,
        normalised: bool = False,
    ) -> None:
        if is_one_pass(loader):
            raise ConfigError(f"fit goes through the training loader every epoch, and {ONE_PASS}")
        self._loader, self._device, self._spec = loader, device, spec
        self._normalised = normalised
        self._last: tuple[str, int, int] | None = None
        self._warned = steps is not None
        self.steps = _length(loader) if steps is None else steps
        if self.steps < 1:
            raise ConfigError(
                f"fit needs to know how many batches an epoch has, 1 at least, and the training "
                f"loader has {self.steps}: is its data set empty, or smaller than a batch that "
                "must be whole (drop_last)?"
            )

    def get(self, stage: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,); steps of an epoch are asked for in order."""
        if step == 0:
            self._batches = iter(self._loader)
        else:
            assert self._last == (stage, epoch, step - 1), "batches come in order"
        self._last = (stage, epoch, step)
        origin = f"the training loader's batch {step + 1}"
        images, labels = taken(self._next(step), self._spec, origin, self._normalised)
        return images.to(self._device), torch.from_numpy(labels).to(self._device)

    def _next(self, step: int) -> Any:
        batch = next(self._batches, _END)
        if batch is _END and step:
            if not self._warned:
                warnings.warn(
                    f"the training loader gave {step} batches and said that it has {self.steps}: "
                    "it is gone through again within an epoch",
                    stacklevel=2,
                )
                self._warned = True
            self._batches = iter(self._loader)
            batch = next(self._batches, _END)
        if batch is _END:
            raise DataError(f"the training loader gave no batch; {ONE_PASS}")
        return batch


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        raise ConfigError(
            "fit needs to know how many batches an epoch has, and the training loader has no "
            "length: say it with steps=N"
        ) from None


def read_validation(
    loader: Loader, limit: int, spec: ModelSpec, normalised: bool = False
) -> ValidationSet:
    """A loader's first images, so many at most, in memory.

    Raises:
        ConfigError: if the network has no two classes.
        DataError: if there are none, or images or labels do not fit.
    """
    images, labels, count = [], [], 0
    for number, batch in enumerate(loader, 1):
        origin = f"the validation loader's batch {number}"
        pixels, answers = taken(batch, spec, origin, normalised)
        images.append(pixels[: limit - count].cpu().numpy())
        labels.append(answers[: limit - count])
        count += len(images[-1])
        if count >= limit:
            break
    if not count:
        raise DataError("the validation loader gave no images: costs are calibrated on them")
    return ValidationSet(np.concatenate(images), np.concatenate(labels))
