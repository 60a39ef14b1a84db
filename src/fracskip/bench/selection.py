"""Peers at their best: of several ways to set an engine up, the fastest that stays accurate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.bench.contender import Contender
from fracskip.bench.timing import Samples, measure

TOLERANCE = 0.005  # of accuracy, below the plain network at full precision
SAME_SPEED = 1.03  # within noise of each other: the more accurate one is kept
IMAGES, ROUNDS = 1000, 5


def choose(
    candidates: Sequence[Contender],
    labels: NDArray[np.int64],
    reference: float | None = None,
    *,
    threads: int = 1,
) -> Contender:
    """The fastest candidate whose accuracy is within half a point of the reference.

    Speed (processor time, where there is one thread) and accuracy are measured on the first
    thousand images, interleaved. Where nothing is accurate enough, the most accurate is kept.

    Args:
        candidates: Ways to run the same network; at least one.
        labels: Of all images.
        reference: Accuracy to keep, over the same first images (None: any will do).
        threads: That the candidates use.

    Returns:
        The chosen one, which says what else was tried.
    """
    if len(candidates) == 1:
        return candidates[0]
    count = min(IMAGES, len(labels))
    found = measure(candidates, count, min(ROUNDS, count))
    rows = [_row(one, found[one.name], labels[:count], threads) for one in candidates]
    floor = -1.0 if reference is None else reference - TOLERANCE - 1e-9
    accurate = [row for row in rows if row["accuracy"] >= floor]
    if accurate:
        limit = SAME_SPEED * min(row["p50_us"] for row in accurate)
        best = max((row for row in accurate if row["p50_us"] <= limit), key=_by_accuracy)
    else:
        best = max(rows, key=_by_accuracy)
    for row in rows:
        row["kept"] = row is best
    chosen = candidates[rows.index(best)]
    return replace(chosen, tried=tuple(rows))


def first_accuracy(one: Contender, labels: NDArray[np.int64]) -> float:
    """Accuracy over the images that `choose` uses."""
    count = min(IMAGES, len(labels))
    predicted = [int(np.argmax(one.run(given))) for given in one.inputs[:count]]
    return float(np.mean(np.array(predicted) == labels[:count]))


def fastest(candidates: Sequence[Contender], images: int, *, threads: int) -> Contender:
    """The candidate with the lowest median time over the first images."""
    count = min(IMAGES, images)
    found = measure(candidates, count, min(ROUNDS, count))
    return min(candidates, key=lambda one: _median(found[one.name], threads))


def _median(samples: Samples, threads: int) -> float:
    times = samples.cpu_us if threads == 1 else samples.wall_us[samples.calm()]
    return float(np.median(times))


def _row(
    one: Contender, samples: Samples, labels: NDArray[np.int64], threads: int
) -> dict[str, Any]:
    return {
        "settings": dict(one.settings),
        "p50_us": _median(samples, threads),
        "accuracy": float((samples.predicted == labels).mean()),
        "images": len(labels),
        "kept": False,
    }


def _by_accuracy(row: dict[str, Any]) -> tuple[float, float]:
    return row["accuracy"], -row["p50_us"]
