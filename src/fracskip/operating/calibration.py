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
    CascadePoint,
    CascadePoints,
    Member,
)
from fracskip.operating.scores import SCORES, Score, answers_of, score_of

Mask = NDArray[np.bool_]

# Shares that are escalated, descending; between them callers get thresholds in between.
RATES = (
    0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.36, 0.32, 0.28, 0.25, 0.22, 0.2, 0.18, 0.16, 0.14, 0.12,
    0.1, 0.085, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01,
)  # fmt: skip
QUANTILES = 33
MAX_CHAINS = 12


@dataclass(frozen=True)
class MemberOutputs:
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


@dataclass(frozen=True)
class _Chain:
    """A chain on all images.

    Attributes:
        members: Their numbers.
        right: Whether it answers right if it ends at each of its members, (members, N).
        scores: Of these answers, (members, N).
    """

    members: tuple[int, ...]
    right: Mask
    scores: NDArray[np.float32]

    def of(self, rows: Mask) -> _Chain:
        """On some of the images."""
        return _Chain(self.members, self.right[:, rows], self.scores[:, rows])

    def reached(self, threshold: float) -> list[Mask]:
        """Which images reach each member but the first."""
        found, here = [], np.ones(self.right.shape[1], bool)
        for scores in self.scores[:-1]:
            here = here & (scores < np.float32(threshold))
            found.append(here)
        return found

    def hits(self, reached: Sequence[Mask]) -> Mask:
        """Which images are answered right, where these reach each member but the first."""
        answer: Mask = self.right[0]
        for right, rows in zip(self.right[1:], reached, strict=True):
            answer = np.where(rows, right, answer)
        return answer

    def thresholds(self) -> list[float]:
        """One for each rate; in a longer chain it is the same throughout: scores are calibrated."""
        found = np.quantile(self.scores[0], RATES)
        # Of equal ones one is enough.
        return list(dict.fromkeys(float(np.float32(each)) for each in found))


def choose_points(answers: Sequence[MemberOutputs], labels: NDArray[np.int64]) -> CascadePoints:
    """The operating points of members, cheapest first; see `fracskip.cascade`.

    Args:
        answers: Of each member.
        labels: (N,).
    """
    chosen = _third(len(labels))
    temperatures = [temperature(each.logits[chosen], labels[chosen]) for each in answers]
    names = [
        names
        for length in range(2, min(len(answers), MAX_CHAIN) + 1)
        for names in itertools.combinations(range(len(answers)), length)
        if length == 2 or len(answers) <= MAX_NETWORKS
    ]

    def chains_by(score: Score, averaged: bool, names: Sequence[tuple[int, ...]]) -> list[_Chain]:
        found = []
        for members in names:
            logits = [answers[member].logits for member in members]
            outputs = answers_of(logits, [temperatures[member] for member in members], averaged)
            right = np.stack([each.argmax(1) == labels for each in outputs])
            found.append(
                _Chain(members, right, np.stack([score_of(each, score) for each in outputs]))
            )
        return found

    # What answers most of the images chosen by right, over all chains and rates.
    best, most = (SCORES[0], True), -1
    for way in itertools.product(SCORES, (True, False)):
        given = [chain.of(chosen) for chain in chains_by(*way, names)]
        hits = sum(int(c.hits(c.reached(t)).sum()) for c in given for t in c.thresholds())
        if hits > most:
            best, most = way, hits
    score, averaged = best
    if len(names) > MAX_CHAINS:
        given = [chain.of(chosen) for chain in chains_by(score, averaged, names)]
        names = _best_chains(given, [each.bitops for each in answers])
    alone = chains_by(score, averaged, [(index,) for index in range(len(answers))])
    counted = ~chosen
    known = np.stack([chain.right[0, counted] for chain in alone])
    members = [
        Member(
            network=each.network,
            budget=each.budget,
            temperature=own,
            bitops=each.bitops,
            correct=int(right.sum()),
            shares=each.shares,
            quantiles=_quantiles(chain.scores[0]),
        )
        for each, own, right, chain in zip(answers, temperatures, known, alone, strict=True)
    ]
    points = [_point(chain, (), counted, known) for chain in alone]
    for chain in chains_by(score, averaged, names):
        for threshold in chain.of(chosen).thresholds():
            points.append(_point(chain, (threshold,) * (len(chain.members) - 1), counted, known))
    return CascadePoints(
        members=tuple(members),
        score=score,
        averaged=averaged,
        images=int(counted.sum()),
        points=tuple(points),
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


def _quantiles(scores: NDArray[np.float32]) -> tuple[float, ...]:
    """From the least to the largest; of no images, evenly spaced."""
    levels = np.linspace(0, 1, QUANTILES)
    found = np.quantile(scores.astype(np.float64), levels) if len(scores) else levels
    return tuple(np.maximum.accumulate(found.clip(0, 1)).tolist())


def _point(
    chain: _Chain, thresholds: tuple[float, ...], counted: Mask, known: Mask
) -> CascadePoint:
    """A chain at thresholds; `known`: whether each member alone is right on the images counted."""
    reached = chain.reached(thresholds[0]) if thresholds else []
    hits = chain.hits(reached)[counted]
    return CascadePoint(
        chain=chain.members,
        thresholds=thresholds,
        rates=(1.0, *(float(rows.mean()) for rows in reached)),
        quantiles=tuple(
            _quantiles(scores[rows])
            for scores, rows in zip(chain.scores[1:-1], reached, strict=False)
        ),
        correct=int(hits.sum()),
        against=tuple((int((hits & ~own).sum()), int((own & ~hits).sum())) for own in known),
    )


def _best_chains(chains: Sequence[_Chain], costs: Sequence[float]) -> list[tuple[int, ...]]:
    """The best chain at each of so many costs, on the images that are chosen by."""
    rows = []
    for chain in chains:
        first, *others = chain.members
        for threshold in chain.thresholds():
            reached = chain.reached(threshold)
            pairs = zip(others, reached, strict=True)
            cost = costs[first] + sum(costs[member] * float(r.mean()) for member, r in pairs)
            rows.append((cost, int(chain.hits(reached).sum()), chain.members))
    limits = np.geomspace(min(rows)[0], max(rows)[0], MAX_CHAINS)
    within = ([row for row in rows if row[0] <= limit * 1.001] for limit in limits)
    return list(dict.fromkeys(max(some, key=lambda row: row[1])[2] for some in within))
