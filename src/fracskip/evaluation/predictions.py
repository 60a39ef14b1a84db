"""Images in, predictions out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray

from fracskip.data.unpacking import naming
from fracskip.evaluation.predictor import Network, Predictor, predictor_of
from fracskip.evaluation.source import sliced
from fracskip.operating import Prediction, joined
from fracskip.options import Option

Progress = Callable[[int], None]


def predict(
    net: Network,
    images: NDArray[Any],
    *,
    force: Option | int | str | None = None,
    budget: float | None = None,
    normalised: bool = False,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Prediction[NDArray[Any]]:
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
    return predict_with(
        predictor_of(net), sliced(images, batch_size), force, budget, progress, normalised
    )


def predict_with(
    predictor: Predictor,
    batches: Iterable[NDArray[Any]],
    force: Option | int | str | None,
    budget: float | None,
    progress: Progress | None,
    normalised: bool = False,
) -> Prediction[NDArray[Any]]:
    """`predict` for what `predictor_of` gave, batch by batch."""
    found = []
    for number, batch in enumerate(batches, 1):
        with naming(f"batch {number}"):
            found.append(predictor.classify(batch, force, budget, normalised))
        if progress is not None:
            progress(len(batch))
    return joined(found)
