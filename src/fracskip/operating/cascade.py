"""Cascades of networks: what a cascade's operating points are, and which one a caller gets.

A cascade has members: networks, each perhaps at a budget of its own. A call uses a chain of them:
the first answers every image, and an image whose score is under a threshold is escalated to the
next ("Wisdom of committees", Wang et al., 2021; by confidence, as in Viola and Jones, CVPR 2001).
An operating point is a chain and its thresholds, with what validation images say of it: which share
of images reaches each member, and how many answers are right.

Which points pay depends on what members cost, and that on the clock they are measured by. So a
cascade keeps all of its points, and `frontier` finds those that pay at given costs.

Shapes: B images, N classes, M members, P points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from fracskip.config.network import FIRST_FAULT, Fraction, Frozen, Positive, Probability
from fracskip.errors import ConfigError
from fracskip.operating.promise import cheapest, images_needed
from fracskip.operating.scores import Score

MAX_NETWORKS = 4
MAX_CHAIN = 4
MAX_MEMBERS = 16
MAX_POINTS = 4096
COST_TOLERANCE = 1e-3  # a limit that was printed and typed in again is still met

Rows = Annotated[tuple[float, ...], FIRST_FAULT]


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(high < low for low, high in itertools.pairwise(values)):
        raise ValueError("quantiles must ascend")
    return values


Quantiles = Annotated[
    tuple[Probability, ...], FIRST_FAULT, Field(min_length=2), AfterValidator(_ascending)
]


class _Strict(Frozen):
    """Nothing is converted."""

    model_config = ConfigDict(strict=True)


class Member(_Strict):
    """A network in a cascade.

    Attributes:
        network: Its number.
        budget: What it is asked for; None: what it has without one.
        temperature: Of its logits, for scores.
        bitops: Mean of an image on validation images: MACs x weight bits x activation bits of all
            that is executed.
        correct: Of the validation images counted, how many it answers right by itself.
        shares: Of its gated blocks, which share of validation images takes each option, one row a
            block; empty for a static network. Its time is measured by them.
        quantiles: Of its scores on validation images, evenly spaced from the least to the largest.
    """

    network: Annotated[int, Field(ge=0, lt=MAX_NETWORKS)]
    budget: Fraction | None
    temperature: Positive
    bitops: Positive
    correct: Annotated[int, Field(ge=0)]
    shares: Annotated[tuple[Annotated[tuple[Probability, ...], FIRST_FAULT], ...], FIRST_FAULT]
    quantiles: Quantiles


class CascadePoint(_Strict):
    """A chain and its thresholds.

    Attributes:
        chain: Numbers of members, ascending; one alone has no threshold.
        thresholds: An image whose score is less is escalated, one fewer than the chain has members.
        rates: Share of images that reaches each member of the chain; the first is 1.
        quantiles: Of the scores of the images that reach it, of each member between the first and
            the last; as a member's are of all images.
        correct: Of the validation images counted, how many answers are right.
        against: For each of the cascade's members by itself: how many answers are right where the
            member's are wrong, and wrong where they are right.
    """

    chain: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        FIRST_FAULT,
        Field(min_length=1, max_length=MAX_CHAIN),
    ]
    thresholds: Annotated[tuple[Annotated[float, Field(ge=0, le=1.0001)], ...], FIRST_FAULT]
    rates: Annotated[tuple[Probability, ...], FIRST_FAULT]
    quantiles: Annotated[tuple[Quantiles, ...], FIRST_FAULT]
    correct: Annotated[int, Field(ge=0)]
    against: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...], FIRST_FAULT
    ]

    @model_validator(mode="after")
    def _it_is_a_chain(self) -> CascadePoint:
        if any(not before < after for before, after in itertools.pairwise(self.chain)):
            raise ValueError("a chain's members must ascend: none twice, the cheapest first")
        if len(self.thresholds) + 1 != len(self.chain) or len(self.rates) != len(self.chain):
            raise ValueError("a chain needs a threshold between two members and a rate each")
        if len(self.quantiles) != max(len(self.chain) - 2, 0):
            raise ValueError("a chain needs quantiles of each member between the first and last")
        if self.rates[0] != 1 or any(b > a for a, b in itertools.pairwise(self.rates)):
            raise ValueError("a chain's rates begin with 1 and descend")
        return self


@dataclass(frozen=True)
class Choice:
    """An operating point that a caller gets.

    Attributes:
        chain: Numbers of members.
        thresholds: See `CascadePoint`.
        rates: Likewise.
        quantiles: Of the scores of the images that reach each member but the last.
        cost: Mean of an image, in the unit that was asked for.
        accuracy: On the validation images counted.
    """

    chain: tuple[int, ...]
    thresholds: tuple[float, ...]
    rates: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...] = field(repr=False)
    cost: float
    accuracy: float


class CascadePoints(_Strict):
    """How a cascade is operated. Immutable.

    Attributes:
        members: Cheapest first; the last is the most accurate by itself, or the dearest.
        score: Decides what is escalated.
        averaged: An escalated image is answered by the mean over the members that saw it, of logits
            over temperatures (Wang et al., 2021); else by the last one alone. Scores are of what is
            answered so far.
        images: How many validation images are counted in `correct` and `against`; no threshold,
            temperature or score was chosen by their labels.
        points: All that were tried, in families of one chain each, the share that is escalated
            descending; and each member alone. None was left out by its labels.
    """

    members: Annotated[tuple[Member, ...], FIRST_FAULT, Field(min_length=2, max_length=MAX_MEMBERS)]
    score: Score
    averaged: bool
    images: Annotated[int, Field(ge=1)]
    points: Annotated[tuple[CascadePoint, ...], FIRST_FAULT, Field(max_length=MAX_POINTS)]

    @model_validator(mode="after")
    def _points_are_of_these_members(self) -> CascadePoints:
        count = len(self.members)
        for point in self.points:
            if max(point.chain) >= count or len(point.against) != count:
                raise ValueError(f"a point is not of {count} members")
            if point.correct > self.images or any(
                better + worse > self.images for better, worse in point.against
            ):
                raise ValueError("a point counts more images than there are")
        if any(member.correct > self.images for member in self.members):
            raise ValueError("a member is right on more images than there are")
        alone = {point.chain for point in self.points if len(point.chain) == 1}
        if alone != {(index,) for index in range(count)}:
            raise ValueError("each member alone must be a point")
        return self

    @property
    def bitops(self) -> tuple[float, ...]:
        """Of each member, in units of the last one's: what `budget` counts in."""
        return tuple(member.bitops / self.members[-1].bitops for member in self.members)

    @property
    def budgets(self) -> tuple[float, float]:
        """The smallest budget, and the least from which on accuracy does not rise."""
        costs, frontier = self.costs(self.bitops), self.frontier(self.bitops)
        return float(costs[frontier[0]]), min(1.0, float(costs[frontier[-1]]))

    # -- which points pay ------------------------------------------------------------------------

    def costs(self, each: Sequence[float]) -> NDArray[np.float64]:
        """The mean cost of an image at each point, (P,).

        Args:
            each: Of a member, in any unit, (M,).
        """
        rows = [
            sum(rate * each[member] for rate, member in zip(point.rates, point.chain, strict=True))
            for point in self.points
        ]
        return np.array(rows, np.float64)

    def frontier(self, each: Sequence[float]) -> list[int]:
        """The points that pay, ascending in cost and in accuracy.

        A chain pays if it is more accurate than each member that by itself costs no more, by more
        than the standard error of the difference: that of paired answers, sqrt(b + c - (b - c)² /
        n) / n, where b are right at the point alone and c at the member alone, of n images.

        Args:
            each: What a member costs, (M,).
        """
        costs = self.costs(each)
        found: list[int] = []
        for index in sorted(range(len(costs)), key=lambda i: (costs[i], -self.points[i].correct)):
            point = self.points[index]
            cheaper = [m for m, cost in enumerate(each) if cost <= costs[index]]
            if len(point.chain) > 1 and not all(self._is_better(point, m) for m in cheaper):
                continue
            if not found or point.correct > self.points[found[-1]].correct:
                found.append(index)
        return found

    def _is_better(self, point: CascadePoint, member: int) -> bool:
        b, c = point.against[member]
        return b - c > math.sqrt(b + c - (b - c) ** 2 / self.images)

    # -- which one a caller gets -----------------------------------------------------------------

    def at_cost(
        self, limit: float, each: Sequence[float], what: str, bound: float | None = None,
        longest: Sequence[float] = (),
    ) -> Choice:  # fmt: skip
        """The most accurate point whose mean cost is at most a limit.

        Between two points of one chain that are neighbours on the frontier, thresholds and rates
        are interpolated.

        Args:
            limit: In the unit of `each`.
            each: What a member costs, (M,).
            what: The limit in words, with '{}' for numbers, for errors.
            bound: No image may cost more, in the unit of `longest`; None: there is no bound.
            longest: What an image may take of a member, (M,).

        Raises:
            ConfigError: if no point is so cheap; the message has the range.
        """
        costs, frontier = self.costs(each), self.frontier(each)
        if bound is not None:
            within = [i for i in frontier if sum(longest[m] for m in self.points[i].chain) <= bound]
            if not within:
                least = min(longest)
                raise ConfigError(
                    f"no member answers within {bound:.5g}: the fastest may take {least:.5g}; "
                    "allow more, or give a smaller member"
                )
            frontier = within
        low, high = costs[frontier[0]], costs[frontier[-1]]
        if not limit >= low * (1 - COST_TOLERANCE):
            asked = what.format(f"{limit:.4g}")
            raise ConfigError(
                f"{asked} is out of this cascade's reach: give {low:.4g} at least; from "
                f"{high:.4g} on accuracy does not rise"
            )
        place = max(k for k, i in enumerate(frontier) if costs[i] <= limit or k == 0)
        here = frontier[place]
        if place + 1 < len(frontier):
            there = frontier[place + 1]
            if self.points[here].chain == self.points[there].chain:
                share = max(0.0, float((limit - costs[here]) / (costs[there] - costs[here])))
                return self._between(here, there, share, each)
        return self._between(here, here, 0.0, each)

    def _between(self, first: int, second: int, share: float, each: Sequence[float]) -> Choice:
        a, b = self.points[first], self.points[second]

        def mix(low: Sequence[float], high: Sequence[float]) -> tuple[float, ...]:
            return tuple(float(x + share * (y - x)) for x, y in zip(low, high, strict=True))

        rates = mix(a.rates, b.rates)
        cost = sum(rate * each[member] for rate, member in zip(rates, a.chain, strict=True))
        right = a.correct + share * (b.correct - a.correct)
        quantiles = (self.members[a.chain[0]].quantiles, *a.quantiles)[: len(a.chain) - 1]
        thresholds = mix(a.thresholds, b.thresholds)
        return Choice(a.chain, thresholds, rates, quantiles, cost, right / self.images)

    def promised(self, max_drop: float, confidence: float, each: Sequence[float]) -> Choice:
        """The cheapest point whose accuracy is at most so far under the last member's.

        With probability `confidence` over validation images the promise is kept on all images of
        their kind (Learn then Test, Angelopoulos et al., 2021): each chain's points are tested from
        the dearest down and the first that fails ends the chain; chains share what may go wrong.

        Args:
            max_drop: A share in (0, 1): 0.005 is half a point of accuracy.
            confidence: In (0, 1).
            each: What a member costs, (M,).

        Raises:
            ConfigError: if no point but the last member itself keeps the promise: the
                message has how many validation images would do.
        """
        for value, name in ((max_drop, "max_drop"), (confidence, "confidence")):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ConfigError(f"{name} {value!r} is out of range: give a share between 0 and 1")
        last, costs = len(self.members) - 1, self.costs(each)
        families = self._families(costs)
        found: list[int] = []
        for family in families:
            tested = [(self.images, *self.points[i].against[last]) for i in family]
            at = cheapest(tested, max_drop, 1 - (1 - confidence) / len(families))
            if at is not None:
                found.append(family[at])
        alone = next(i for i, point in enumerate(self.points) if point.chain == (last,))
        best = min(found, key=lambda i: costs[i], default=alone)
        if costs[best] >= costs[alone]:
            raise ConfigError(self._refusal(families, max_drop, confidence))
        return self._between(best, best, 0.0, each)

    def _families(self, costs: NDArray[np.float64]) -> list[list[int]]:
        """The points of each chain to the last member, and then its first member alone."""
        last = len(self.members) - 1
        alone = {point.chain[0]: i for i, point in enumerate(self.points) if len(point.chain) == 1}
        chains: dict[tuple[int, ...], list[int]] = {}
        for index, point in enumerate(self.points):
            if len(point.chain) > 1 and point.chain[-1] == last:
                chains.setdefault(point.chain, []).append(index)
        return [
            [*sorted(family, key=lambda i: -costs[i]), alone[chain[0]]]
            for chain, family in chains.items()
        ]

    def _refusal(self, families: list[list[int]], max_drop: float, confidence: float) -> str:
        last, share = len(self.members) - 1, 1 - (1 - confidence) / max(1, len(families))
        counts = {self.points[i].against[last] for family in families for i in family}
        # The likeliest one by far is that with the least drop in its own standard errors.
        best = max(
            counts,
            key=lambda c: (c[0] - c[1] + self.images * max_drop) / math.sqrt(sum(c) + 1),
            default=(0, self.images),
        )
        needed = images_needed(self.images, *best, max_drop, share)
        more = (
            "and more would not help: the members differ by more"
            if needed is None
            else f"some {needed:,} in place of {self.images:,} would do if they are like these"
        )
        return (
            f"no point cheaper than the last member alone keeps max_drop={max_drop:g} with "
            f"confidence {confidence:g} on {self.images:,} validation images, {more}: allow a "
            "larger drop, give more images to fracskip.cascade, or use budget=1"
        )
