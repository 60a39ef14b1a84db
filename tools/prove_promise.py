"""Proves that a promised drop in accuracy is broken no more often than its confidence says.

A cascade of two int8 ResNets, whose operating points are shares of images that are escalated. The
validation images give the thresholds (by their scores alone) and then, by their labels, the
cheapest point for which the promise is kept. That is done again and again:

- halves: validation images are a random half of CIFAR-10's test images. The other half counts the
  drop again. That count has noise of its own, so that the drop on all images is given as well.
- draws: test images are the population. As many as half of them are drawn with replacement, and
  the drop on the population is the true one. This is what the confidence speaks about.

    python tools/prove_promise.py --splits 1000 --json results/promise.json

It ends with an error if more draws break their promise than chance allows.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from checking import publish
from member_logits import MEMBERS, member_logits, probabilities
from numpy.typing import NDArray

from fracskip.machine import describe_processor
from fracskip.operating.promise import cheapest

RATES = (0.5, 0.4, 0.3, 0.25, 0.2, *(round(rate, 3) for rate in np.arange(0.15, 0.01, -0.005)))
SEED = 0
CHANCE = 0.03  # Of more broken promises than are allowed here, if their true share is the stated.

Rows = NDArray[np.int64]


class Population(NamedTuple):
    """What two members say of images: the first one's score, and which are right, (B,) each."""

    score: NDArray[np.float32]
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]

    def counts(self, rows: Rows, threshold: float) -> tuple[int, int, int]:
        """Images, and how many of them a threshold makes better and worse than the last member."""
        stays = self.score[rows] >= threshold
        first, last = self.first[rows], self.last[rows]
        return len(rows), int((stays & first & ~last).sum()), int((stays & ~first & last).sum())

    def drop(self, rows: Rows, threshold: float) -> float:
        """In accuracy, on some of the images."""
        images, better, worse = self.counts(rows, threshold)
        return (worse - better) / images


def population() -> Population:
    """Of CIFAR-10's test images as they are."""
    first, last = (member_logits(depth) for depth in MEMBERS)
    labels, name = first["labels"], "as they are"
    right = [each[name].argmax(1) == labels for each in (first, last)]
    return Population(probabilities(first[name]).max(1), *right)


def chosen(
    of: Population, rows: Rows, max_drop: float, confidence: float | None
) -> tuple[float, float]:
    """(rate, threshold) of the cheapest point for which the promise is kept on some images.

    If it is kept by none, all images are escalated, which drops nothing: rate 1.

    Args:
        of: The population.
        rows: Images.
        max_drop: That is promised.
        confidence: Of the promise. None: of points, the cheapest whose estimate is within it.
    """
    points = [float(np.quantile(of.score[rows], rate)) for rate in RATES]
    if confidence is None:
        within = [index for index, at in enumerate(points) if of.drop(rows, at) <= max_drop]
        found = max(within, default=None)
    else:
        found = cheapest([of.counts(rows, each) for each in points], max_drop, confidence)
    return (1.0, math.inf) if found is None else (RATES[found], points[found])


def tries(kind: str, size: int, count: int) -> Iterator[tuple[Rows, Rows]]:
    """Images that a promise is made on, and other ones to count it again."""
    for index in range(count):
        draw = np.random.default_rng([SEED, index])
        if kind == "halves":
            order = draw.permutation(size)
            yield order[: size // 2], order[size // 2 :]
        else:
            yield draw.integers(0, size, size // 2), np.arange(size)


def allowed(count: int, share: float) -> int:
    """The most of so many that happens by chance: more has a chance of at most `CHANCE`."""
    left = 1.0
    for number in range(count + 1):
        left -= math.comb(count, number) * share**number * (1 - share) ** (count - number)
        if left <= CHANCE:
            return number
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--max-drop", type=float, nargs="*", default=[0.005, 0.01])
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    of = population()
    size, everything = len(of.score), np.arange(len(of.score))
    most = allowed(given.splits, 1 - given.confidence)
    rows = []
    for max_drop in given.max_drop:
        for kind in ("halves", "draws"):
            rates, broken, broken_again, broken_by_estimate = [], 0, 0, 0
            for validation, others in tries(kind, size, given.splits):
                rate, threshold = chosen(of, validation, max_drop, given.confidence)
                rates.append(rate)
                broken += of.drop(everything, threshold) > max_drop
                broken_again += of.drop(others, threshold) > max_drop
                _, threshold = chosen(of, validation, max_drop, None)
                broken_by_estimate += of.drop(everything, threshold) > max_drop
            row = {"max_drop": max_drop, "kind": kind, "broken": broken, "allowed": most}
            row |= {"mean_rate": float(np.mean(rates)), "without_confidence": broken_by_estimate}
            if kind == "halves":
                row["broken_on_the_other_half"] = broken_again
            print(row, file=sys.stderr)
            rows.append(row)
    record = {
        "schema": "fracskip.promise/1",
        "members": [f"resnet{depth} int8" for depth in MEMBERS],
        "validation_images": size // 2,
        "confidence": given.confidence,
        "splits": given.splits,
        "accuracy_of_the_last": float(of.last.mean()),
        "drops": {str(r): of.drop(everything, np.quantile(of.score, r)) for r in RATES},
        "promises": rows,
    }
    publish(record, describe_processor(1), given.json)
    return int(any(row["broken"] > most for row in rows))


if __name__ == "__main__":
    sys.exit(main())
