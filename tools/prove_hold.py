"""Proves that a cascade's cost is held when images change, by thresholds that follow their scores.

Thresholds are found on half of CIFAR-10's test images, by scores alone. The other half comes as a
stream, in batches, shuffled: first as the images are, then, from a known image on, saved as JPEG,
with Gaussian noise, or darkened. The mean cost (MACs of the members that ran) of every window of
2,000 images is compared with what the rates ask for: before the change, and after it, from the
first batch on that starts when 500 changed images were seen.

    python tools/prove_hold.py --json results/hold.json

It ends with an error if a window is off by more than 5% before the change (or than with thresholds
that stay, where chance alone does that), or by more than 10% after it.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import numpy as np
from checking import publish
from member_logits import CHANGES, member_logits, probabilities
from numpy.typing import NDArray

from fracskip.machine import describe_processor
from fracskip.operating.tracking import RateTracker

WINDOW, SETTLED = 2000, 500
BEFORE, AFTER = 6000, 8000  # Images of a stream.
LIMITS = (0.05, 0.10)
LEVELS = np.linspace(0, 1, 33)

Scores = NDArray[np.float32]


class Point(NamedTuple):
    """A chain of members by their depths, and the share of images that is to reach each."""

    chain: tuple[int, ...]
    rates: tuple[float, ...]


POINTS = (
    Point((20, 38), (1.0, 0.08)),
    Point((20, 38), (1.0, 0.2)),
    Point((20, 38), (1.0, 0.4)),
    Point((14, 20, 38), (1.0, 0.4, 0.15)),
)


class Members:
    """What members' scores are, for each of `CHANGES`, and what each costs in MACs."""

    def __init__(self) -> None:
        self.scores: dict[tuple[int, str], Scores] = {}
        self.macs: dict[int, float] = {}
        for depth in sorted({depth for point in POINTS for depth in point.chain}):
            logits = member_logits(depth)
            self.macs[depth] = float(logits["macs"])
            for name in CHANGES:
                self.scores[depth, name] = probabilities(logits[name]).max(1)


def found(members: Members, point: Point, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Thresholds for the rates on some images, and quantiles of the scores there."""
    thresholds, quantiles, reached = [], [], rows
    for index, depth in enumerate(point.chain[:-1]):
        scores = members.scores[depth, "as they are"][reached]
        thresholds.append(float(np.quantile(scores, point.rates[index + 1] / point.rates[index])))
        quantiles.append(np.quantile(scores, LEVELS).tolist())
        reached = reached[scores < thresholds[-1]]
    return {"thresholds": thresholds, "quantiles": quantiles}


def answered(scores: list[Scores], thresholds: tuple[float, ...]) -> list[Scores]:
    """The scores of a batch as a session gives them: NaN where an image did not reach a member."""
    given, reached = [], np.ones(len(scores[0]), bool)
    for each, threshold in zip(scores, (*thresholds, -np.inf), strict=True):
        given.append(np.where(reached, each, np.float32(np.nan)))
        reached &= each < threshold
    return given


def errors(
    members: Members, point: Point, change: str, batch: int, tracked: bool, seed: int
) -> tuple[float, float, float]:
    """Worst relative errors of cost in a window, before and after a change; drift at the end."""
    rows = np.random.default_rng(0).permutation(10_000)
    validation, rest = rows[:5000], rows[5000:]
    setting = found(members, point, validation)
    tracker = RateTracker(point.rates, **setting, validated=len(validation))
    draw = np.random.default_rng([seed, 1])
    first, second = (
        np.concatenate([draw.permutation(rest) for _ in range(2)])[:count]
        for count in (BEFORE, AFTER)
    )
    stream = [
        np.concatenate(
            [members.scores[depth, "as they are"][first], members.scores[depth, change][second]]
        )
        for depth in point.chain
    ]
    macs = [members.macs[depth] for depth in point.chain]
    costs = []
    for start in range(0, BEFORE + AFTER, batch):
        thresholds = tracker.thresholds if tracked else tuple(setting["thresholds"])
        scores = answered([each[start : start + batch] for each in stream], thresholds)
        costs.append(sum(~np.isnan(each) * cost for each, cost in zip(scores, macs, strict=True)))
        tracker.observe(scores)
    asked = sum(rate * cost for rate, cost in zip(point.rates, macs, strict=True))
    sums = np.concatenate([[0], np.cumsum(np.concatenate(costs))])
    off = np.abs((sums[WINDOW:] - sums[:-WINDOW]) / WINDOW / asked - 1)
    settled = -(-(BEFORE + SETTLED) // batch) * batch
    return float(off[: BEFORE - WINDOW + 1].max()), float(off[settled:].max()), tracker.drift


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 250, 2000])
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    members = Members()
    rows = []
    for point in POINTS:
        for change in CHANGES:
            for batch in given.batches:
                row: dict[str, Any] = {**point._asdict(), "change": change, "batch": batch}
                for tracked in (False, True):
                    tries = [
                        errors(members, point, change, batch, tracked, seed)
                        for seed in range(given.streams)
                    ]
                    before, after, drift = (max(each) for each in zip(*tries, strict=True))
                    row["tracked" if tracked else "fixed"] = [before, after]
                row["drift"] = drift
                rows.append(row)
                words = [f"{value:6.1%}" for value in (*row["fixed"], *row["tracked"])]
                print(
                    point.chain,
                    point.rates,
                    f"{change:18}{batch:5}",
                    *words,
                    f"{drift:.2f}",
                    file=sys.stderr,
                )
    record = {
        "schema": "fracskip.hold/1",
        "window": WINDOW,
        "settled_after": SETTLED,
        "limits": LIMITS,
        "macs": members.macs,
        "worst_errors_of_cost": rows,
    }
    publish(record, describe_processor(1), given.json)
    steady, settled = LIMITS
    held = [
        row["tracked"][0] <= max(steady, row["fixed"][0]) and row["tracked"][1] <= settled
        for row in rows
    ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
