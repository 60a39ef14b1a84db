"""Looking twice: a cheap look at every image, a dearer one at those that it leaves unsure.

A look asks the network for a budget. Where the probability of the first choice stays under a
threshold, a second look asks for a larger budget; it decides, and both are paid for. (A cascade by
confidence, as in Viola and Jones, CVPR 2001, with one network in both places.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fracskip.cost.budget import checked_range

Decisions = NDArray[np.integer]
# (budget, budget of the first look, budget of the second, probability under which there is one)
CascadePoint = tuple[float, float, float, float]


@dataclass(frozen=True)
class Looks:
    """What each of B images is asked for: all float32, (B,).

    Attributes:
        first: Budget of the first look.
        second: Budget of the second.
        confidence: There is a second look where the probability of the first choice is smaller.
    """

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Cascade:
    """Which looks meet which budget: two points or more, ascending in budget."""

    points: tuple[CascadePoint, ...]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest budget."""
        return self.points[0][0], self.points[-1][0]

    def looks_at(self, budgets: NDArray[np.float32]) -> Looks:
        """The looks for each budget (B,); between points all is interpolated over log cost.

        Raises:
            ConfigError: if a budget is none that this network reaches.
        """
        checked_range(budgets, self.range)
        known, first, second, confidence = self._columns
        at = np.log(budgets)
        return Looks(
            np.exp(np.interp(at, known, first)).astype(np.float32),
            np.exp(np.interp(at, known, second)).astype(np.float32),
            np.interp(at, known, confidence).astype(np.float32),
        )

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        """The points' columns, budgets as logarithms."""
        columns = np.array(self.points).T
        columns[:3] = np.log(columns[:3])
        return columns


@dataclass(frozen=True)
class FirstLooks:
    """What a cascade executed before the looks that decided.

    Attributes:
        decisions: Option indices of each image's first look, (N, gated blocks).
        again: Images that were looked at a second time, bool (N,).
    """

    decisions: Decisions
    again: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[FirstLooks]) -> FirstLooks:
        """Those of several batches, in order."""
        return cls(
            np.concatenate([part.decisions for part in parts]),
            np.concatenate([part.again for part in parts]),
        )

    def take(self, rows: NDArray[np.bool_]) -> FirstLooks:
        """Those of some images."""
        return FirstLooks(self.decisions[rows], self.again[rows])

    def all_with(self, decisions: Decisions) -> Decisions:
        """Every look's decisions, one row a look: those that decided, (N, L), and those before."""
        return np.concatenate([decisions, self.decisions[self.again].astype(decisions.dtype)])
