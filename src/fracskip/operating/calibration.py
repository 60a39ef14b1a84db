"""Operating points of a cascade from what its members answer on validation images.

Shapes: N images, M members, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fracskip.operating.cascade import (
    MAX_CHAIN,
    MAX_NETWORKS,
    SCORES,
    CascadePoint,
    CascadePoints,
    Member,
    Score,
    score_of,
)

Mask = NDArray[np.bool_]

# Shares that are escalated, descending; between them callers get thresholds in between.
RATES = (
    0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.36, 0.32, 0.28, 0.25, 0.22, 0.2, 0.18, 0.16, 0.14, 0.12,
    0.1, 0.085, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01,
)  # fmt: skip
QUANTILES = 33
MAX_CHAINS = 12


@dataclass(frozen=True)
class Answers:
    """A member on all validation images.

    Attributes:
        network: Its number.
        budget: Of its own.
        logits: (N, C).
        bitops: Mean of an image.
        shares: See `Member`.
    """

    network: int
    budget: float | None
    logits: NDArray[np.float32]
    bitops: float
    shares: tuple[tuple[float, ...], ...]


def choose_points(answers: Sequence[Answers], labels: NDArray[np.int64]) -> CascadePoints:
    """The operating points of members, cheapest first; see `cascade`.

    Args:
        answers: Of each member.
        labels: (N,).
    """
    chosen = _third(len(labels))
    counted = ~chosen
    right = np.stack([each.logits.argmax(1) == labels for each in answers])
    temperatures = [temperature(each.logits[chosen], labels[chosen]) for each in answers]
    chains = [
        chain
        for length in range(2, min(len(answers), MAX_CHAIN) + 1)
        for chain in itertools.combinations(range(len(answers)), length)
        if length == 2 or len(answers) <= MAX_NETWORKS
    ]
    costs = [each.bitops for each in answers]

    def scores_by(score: Score) -> NDArray[np.float32]:
        pairs = zip(answers, temperatures, strict=True)
        return np.stack([score_of(each.logits, t, score) for each, t in pairs])

    # The score by which most of the images chosen by are right, over all chains and rates.
    found = {}
    for score in SCORES:
        scores = scores_by(score)[:, chosen]
        tried = {
            chain: [_escalated(chain, t, scores) for t in _thresholds(chain, scores)]
            for chain in chains
        }
        hits = {
            chain: [_right(chain, reached, right[:, chosen]).mean() for reached in rows]
            for chain, rows in tried.items()
        }
        found[score] = (sum(map(sum, hits.values())), tried, hits)
    score = max(SCORES, key=lambda each: found[each][0])
    if len(chains) > MAX_CHAINS:
        chains = _best_chains(*found[score][1:], costs)
    scores = scores_by(score)
    members = [
        Member(
            network=each.network,
            budget=each.budget,
            temperature=t,
            bitops=each.bitops,
            correct=int(right[index, counted].sum()),
            shares=each.shares,
            quantiles=_quantiles(scores[index]),
        )
        for index, (each, t) in enumerate(zip(answers, temperatures, strict=True))
    ]
    points = [_point((index,), (), scores, right, counted) for index in range(len(answers))]
    for chain in chains:
        for threshold in _thresholds(chain, scores[:, chosen]):
            thresholds = (threshold,) * (len(chain) - 1)
            points.append(_point(chain, thresholds, scores, right, counted))
    return CascadePoints(
        members=tuple(members), score=score, images=int(counted.sum()), points=tuple(points)
    )


def _third(count: int) -> Mask:
    """Which images are chosen by: every run gives the same ones."""
    order = np.argsort(np.random.PCG64(0).random_raw(count), kind="stable")
    mask = np.zeros(count, bool)
    mask[order[: max(1, count // 3)]] = True
    return mask


def temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """That of the least cross-entropy (Guo et al., 2017), by golden section over its logarithm."""
    rows = np.arange(len(labels))

    def loss(log: float) -> float:
        z = logits.astype(np.float64) / np.exp(log)
        z -= z.max(1, keepdims=True)
        return float((np.log(np.exp(z).sum(1)) - z[rows, labels]).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    losses = loss(inner), loss(outer)
    while high - low > 1e-3:
        if losses[0] < losses[1]:
            high, outer, inner = outer, inner, outer - ratio * (outer - low)
            losses = loss(inner), losses[0]
        else:
            low, inner, outer = inner, outer, inner + ratio * (high - inner)
            losses = losses[1], loss(outer)
    return float(np.exp((low + high) / 2))


def _thresholds(chain: Sequence[int], scores: NDArray[np.float32]) -> list[float]:
    """One for each rate; in a longer chain it is the same throughout: scores are calibrated."""
    found = np.quantile(scores[chain[0]], RATES)
    # Of equal ones one is enough.
    return list(dict.fromkeys(float(np.float32(each)) for each in found))


def _escalated(chain: Sequence[int], threshold: float, scores: NDArray[np.float32]) -> list[Mask]:
    """Which images reach each member of a chain but the first."""
    reached = np.ones(scores.shape[1], bool)
    found = []
    for member in chain[:-1]:
        reached = reached & (scores[member] < np.float32(threshold))
        found.append(reached)
    return found


def _quantiles(scores: NDArray[np.float32]) -> tuple[float, ...]:
    """From the least to the largest; of no images, evenly spaced."""
    levels = np.linspace(0, 1, QUANTILES)
    found = np.quantile(scores.astype(np.float64), levels) if len(scores) else levels
    return tuple(np.maximum.accumulate(found.clip(0, 1)).tolist())


def _right(chain: Sequence[int], reached: Sequence[Mask], right: Mask) -> Mask:
    """Which images a chain answers right."""
    answer: Mask = right[chain[0]]
    for member, rows in zip(chain[1:], reached, strict=True):
        answer = np.where(rows, right[member], answer)
    return answer


def _point(
    chain: tuple[int, ...],
    thresholds: tuple[float, ...],
    scores: NDArray[np.float32],
    right: Mask,
    counted: Mask,
) -> CascadePoint:
    reached = _escalated(chain, thresholds[0], scores) if thresholds else []
    answer = _right(chain, reached, right)[counted]
    return CascadePoint(
        chain=chain,
        thresholds=thresholds,
        rates=(1.0, *(float(rows.mean()) for rows in reached)),
        quantiles=tuple(
            _quantiles(scores[member, rows])
            for member, rows in zip(chain[1:-1], reached, strict=False)
        ),
        correct=int(answer.sum()),
        against=tuple(
            (int((answer & ~alone).sum()), int((alone & ~answer).sum()))
            for alone in right[:, counted]
        ),
    )


def _best_chains(
    tried: dict[tuple[int, ...], list[list[Mask]]],
    hits: dict[tuple[int, ...], list[float]],
    costs: Sequence[float],
) -> list[tuple[int, ...]]:
    """The best chain at each of so many costs, by the images that are chosen by."""
    rows = [
        (
            costs[chain[0]]
            + sum(costs[m] * r.mean() for m, r in zip(chain[1:], reached, strict=True)),
            hit,
            chain,
        )
        for chain, ways in tried.items()
        for reached, hit in zip(ways, hits[chain], strict=True)
    ]
    limits = np.geomspace(min(row[0] for row in rows), max(row[0] for row in rows), MAX_CHAINS)
    best = [
        max((row for row in rows if row[0] <= limit * 1.001), key=lambda row: row[1])[2]
        for limit in limits
    ]
    return list(dict.fromkeys(best))
