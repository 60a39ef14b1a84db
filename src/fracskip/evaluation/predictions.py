"""Images in, probabilities and decisions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.cost import FirstLooks
from fracskip.evaluation.labelled import naming
from fracskip.evaluation.source import sliced
from fracskip.evaluation.subject import Network, Subject, subject_of
from fracskip.options import Option

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Predictions:
    """What a network said of a set of images.

    Attributes:
        probabilities: Softmax of the logits, (N, classes).
        decisions: Option indices, (N, gated blocks); where an image was looked at twice, of the
            second look.
        seconds: Wall time, preprocessing included.
        before: The first looks, where images may be looked at twice.
    """

    probabilities: NDArray[np.float32]
    decisions: NDArray[np.int64]
    seconds: float
    before: FirstLooks | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image, (N,)."""
        return np.asarray(self.probabilities.argmax(1), dtype=np.int64)


def predict(
    net: Network,
    images: NDArray[Any],
    *,
    force: Option | int | str | None = None,
    budget: float | None = None,
    normalised: bool = False,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Predictions:
    """Classifies images, in batches.

    Args:
        net: A network on any device, or a session.
        images: uint8 (N, H, W, C), N at least 1; or normalised floats, (N, C, H, W) for a network
            in torch, (N, H, W, C) for a session.
        force: Execute every block at this option instead of asking the gates.
        budget: Target computation share, if the network takes one.
        normalised: Floats are normalised, whatever their range is.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Raises:
        ConfigError, DataError: if images, option or budget do not fit the network.
    """
    return predict_subject(
        subject_of(net), sliced(images, batch_size), force, budget, progress, normalised
    )


def predict_subject(
    subject: Subject,
    batches: Iterable[NDArray[Any]],
    force: Option | int | str | None,
    budget: float | None,
    progress: Progress | None,
    normalised: bool = False,
) -> Predictions:
    """`predict` for what `subject_of` gave, batch by batch."""
    probabilities, decisions, before = [], [], []
    begin = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        with naming(f"batch {number}"):
            found = subject.classify(batch, force, budget, normalised)
        probabilities.append(_softmax(found.logits))
        decisions.append(found.decisions.astype(np.int64))
        if found.before is not None:
            before.append(found.before)
        if progress is not None:
            progress(len(batch))
    return Predictions(
        np.concatenate(probabilities),
        np.concatenate(decisions),
        time.perf_counter() - begin,
        FirstLooks.joined(before) if before else None,
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
