"""Operating points: what a network is asked for where, found after training, apart from its spec.

A network has one Lagrange multiplier of cost for its target, and a curve of them for budgets that
callers name. Cost is relative: 1 is every gated block at 32 bits. A cascade (by confidence, as in
Viola and Jones, CVPR 2001) meets a budget by two members: the first answers every image for less,
and an image whose first choice is less probable than a threshold is escalated to the second, for
more. A member is a network at a budget; members of one network share its multiplier curve.

Shapes: B images.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from fracskip.config.network import FIRST_FAULT, Fraction, Frozen, Probability
from fracskip.errors import ConfigError

TAKES_NO_BUDGET = "this network was trained for one budget and takes none: leave budget out"
Multiplier = Annotated[float, Field(ge=-1e38, le=1e38)]  # what float32 holds
# (cost, multiplier)
MultiplierCurve = Annotated[tuple[tuple[Fraction, Multiplier], ...], FIRST_FAULT]
# (budget, budget of the first member, of the second, threshold)
Cascade = Annotated[tuple[tuple[Fraction, Fraction, Fraction, Probability], ...], FIRST_FAULT]


class Setting(NamedTuple):
    """How one member answers B images.

    Attributes:
        multiplier: Float32, one for all () or (B,).
        budget: What a gate that takes a budget is given, float32 (B,); None for other gates.
        network: Its number, among those of a cascade.
        temperature: What its logits are divided by for the score that decides on escalation.
    """

    multiplier: NDArray[np.float32]
    budget: NDArray[np.float32] | None
    network: int = 0
    temperature: float = 1.0

    def of(self, rows: NDArray[Any]) -> Setting:
        """For some of the images."""
        multiplier = self.multiplier[rows] if self.multiplier.ndim else self.multiplier
        budget = None if self.budget is None else self.budget[rows]
        return self._replace(multiplier=multiplier, budget=budget)


class Operation(NamedTuple):
    """How B images are answered.

    Attributes:
        members: One, or those of a cascade, in order.
        thresholds: An image whose score is less is escalated to the next member, float32 (B,) each;
            one fewer than there are members.
        score: Which score; see `fracskip.operating.scores.score_of`.
        averaged: Answers are means over the members so far, of logits over temperatures; else the
            last member's logits.
    """

    members: tuple[Setting, ...]
    thresholds: tuple[NDArray[np.float32], ...] = ()
    score: str = "probability"
    averaged: bool = False


class OperatingPoints(Frozen):
    """How a network is operated. Immutable: `changed` gives others.

    Attributes:
        target: The budget of callers who name none, if it was trained for one.
        multiplier: Of cost, where no budget is named; found on validation images so that the mean
            cost meets the target.
        multiplier_curve: (cost, multiplier) pairs, costs ascending and multipliers descending: what
            multipliers cost on validation images, for budgets that the caller names. Empty: only
            gates that take a budget as an input let one be named.
        cascade: Rows (budget, budget of the first member, of the second, threshold), ascending in
            budget. Empty: one member answers.
    """

    target: Fraction | None = None
    multiplier: Multiplier = 0.0
    multiplier_curve: MultiplierCurve = ()
    cascade: Cascade = ()

    @model_validator(mode="after")
    def _the_curve_is_monotonic(self) -> OperatingPoints:
        if len(self.multiplier_curve) == 1:
            raise ValueError("a multiplier curve has two points at least, or none")
        for (cost, multiplier), (dearer, lower) in itertools.pairwise(self.multiplier_curve):
            if not (cost < dearer and multiplier > lower):
                raise ValueError("a multiplier curve's costs ascend and its multipliers descend")
        return self

    @model_validator(mode="after")
    def _members_lie_on_the_curve(self) -> OperatingPoints:
        rows, curve, target = self.cascade, self.multiplier_curve, self.target
        if not rows:
            return self
        if len(rows) == 1 or not curve:
            raise ValueError(
                "a cascade has two rows at least and a multiplier curve for its members, or is "
                "empty"
            )
        for (budget, *_), (larger, *_) in itertools.pairwise(rows):
            if not budget < larger:
                raise ValueError("a cascade's budgets must ascend")
        low, high = curve[0][0], curve[-1][0]
        for _, first, second, _ in rows:
            if not low <= first <= second <= high:
                raise ValueError(
                    f"a cascade's members must lie on the multiplier curve, from {low} to {high}"
                )
        if target is None or not rows[0][0] <= target <= rows[-1][0]:
            raise ValueError(
                "a cascade needs a target among its budgets, for callers who name none"
            )
        return self

    def changed(self, **fields: Any) -> OperatingPoints:
        """The same with other values for some fields, validated as a whole."""
        return OperatingPoints(**{**dict(self), **fields})

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest budget that cascade or curve meet; None without either."""
        rows = self.cascade or self.multiplier_curve
        return (rows[0][0], rows[-1][0]) if rows else None

    def budgets(self, budget_input: bool) -> tuple[float, float] | None:
        """The smallest and the largest budget that a caller may name; None if it may name none.

        Args:
            budget_input: Whether the gate takes a budget as an input.
        """
        return self.range or ((0.0, 1.0) if budget_input else None)

    def at(self, budget: ArrayLike | None, count: int, budget_input: bool) -> Operation:
        """How images are answered for a budget.

        Args:
            budget: Computation share, one for all images or (B,); None asks for the target.
            count: B.
            budget_input: Whether the gate takes a budget as an input.

        Raises:
            ConfigError: if the budget is none that the network meets, or one is needed.
        """
        if budget is not None and self.budgets(budget_input) is None:
            raise ConfigError(TAKES_NO_BUDGET)
        if not self.cascade:
            return Operation((self.alone(budget, count, budget_input),))
        budgets = checked_budgets(self.target if budget is None else budget, count)
        *members, threshold = self.members_at(budgets)
        settings = (self.alone(each, count, budget_input) for each in members)
        return Operation(tuple(settings), (threshold,))

    def alone(self, budget: ArrayLike | None, count: int, budget_input: bool) -> Setting:
        """How one member answers images for a budget of its own; see `at`."""
        multiplier = np.asarray(self.multiplier, np.float32)
        if budget is not None and self.multiplier_curve:
            multiplier = self.multipliers_at(checked_budgets(budget, count))
        if not budget_input:
            return Setting(multiplier, None)
        given = self.target if budget is None else budget
        if given is None:
            raise ConfigError("this network needs a budget: a computation share in (0, 1]")
        return Setting(multiplier, checked_budgets(given, count))

    def multipliers_at(self, budgets: NDArray[np.float32]) -> NDArray[np.float32]:
        """The multiplier for each budget (B,); linear in log cost between the curve's points.

        Raises:
            ConfigError: if a budget is none that the curve reaches.
        """
        costs, multipliers = _columns(self.multiplier_curve)
        _check_range(budgets, self.multiplier_curve[0][0], self.multiplier_curve[-1][0])
        between = np.interp(_logs(budgets), np.log(costs), multipliers)
        return np.asarray(between, dtype=np.float32)

    def members_at(self, budgets: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """The budgets of the first and of the second member, and the threshold: (B,) each.

        Between the cascade's rows all is interpolated over log cost.

        Raises:
            ConfigError: if a budget is none that the cascade reaches.
        """
        _check_range(budgets, self.cascade[0][0], self.cascade[-1][0])
        known, *members, threshold = _columns(self.cascade)
        at, known = _logs(budgets), np.log(known)
        asked = (np.exp(np.interp(at, known, np.log(member))) for member in members)
        return tuple(each.astype(np.float32) for each in (*asked, np.interp(at, known, threshold)))


def _logs(budgets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms that what is rounded to float32 in the end does not show: engines agree."""
    return np.log(budgets.astype(np.float64))


@lru_cache(maxsize=64)
def _columns(rows: tuple[tuple[float, ...], ...]) -> NDArray[np.float64]:
    """The columns of curve or cascade."""
    columns = np.array(rows).T
    columns.flags.writeable = False
    return columns


def checked_budgets(budget: ArrayLike | None, count: int) -> NDArray[np.float32]:
    """One computation share for each image, (B,).

    Args:
        budget: One share for all images, or (B,).
        count: B.

    Raises:
        ConfigError: if it is no number, not in (0, 1], or of another shape.
    """
    try:
        values = np.asarray(budget, dtype=np.float32)
    except (TypeError, ValueError):
        raise ConfigError(f"budget {budget!r} is no number: give a share in (0, 1]") from None
    if values.shape not in ((), (1,), (count,)):
        raise ConfigError(
            f"budget of shape {values.shape} does not fit: give one share, or one for each of "
            f"the {count} images"
        )
    if not ((values > 0) & (values <= 1)).all():
        raise ConfigError(f"budget {budget!r} is out of range: give a share in (0, 1]")
    return np.broadcast_to(values, (count,)).copy()


def _check_range(budgets: NDArray[np.float32], low: float, high: float) -> None:
    """Refuses budgets (B,) that a network does not reach."""
    # Ends that were printed and typed in again are still the ends.
    outside = (budgets < low * (1 - 1e-3)) | (budgets > high * (1 + 1e-3))
    if outside.any():
        raise ConfigError(
            f"budget {float(budgets[outside][0]):.4g} is out of this network's reach: give a "
            f"share from {low:.4g} to {high:.4g}"
        )
