"""Operating points: budgets become multipliers and members of a cascade."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fracskip.errors import ConfigError
from fracskip.operating import OperatingPoints, checked_budgets

CURVE = ((0.01, 4.0), (0.1, 0.0), (0.4, -2.0))
ROWS = ((0.01, 0.01, 0.02, 0.0), (0.04, 0.02, 0.08, 0.9))
POINTS = OperatingPoints(target=0.1, multiplier=0.5, multiplier_curve=CURVE)
CASCADE = OperatingPoints(target=0.02, multiplier_curve=CURVE, cascade=ROWS)


def asked(*budgets: float) -> np.ndarray:
    return np.array(budgets, np.float32)


def test_measured_costs_keep_their_multipliers() -> None:
    found = POINTS.multipliers_at(asked(0.01, 0.1, 0.4))
    np.testing.assert_allclose(found, [4, 0, -2], atol=1e-5)
    assert found.dtype == np.float32


def test_between_them_it_is_linear_in_log_cost() -> None:
    middle = asked(np.sqrt(0.01 * 0.1), np.sqrt(0.1 * 0.4))
    np.testing.assert_allclose(POINTS.multipliers_at(middle), [2, -1], atol=1e-5)
    everywhere = POINTS.multipliers_at(np.geomspace(0.01, 0.4, 50).astype(np.float32))
    assert (np.diff(everywhere) < 0).all()


def test_an_end_that_was_rounded_is_still_an_end() -> None:
    assert POINTS.multipliers_at(asked(0.009995))[0] == 4


@pytest.mark.parametrize(
    ("points", "budget", "reach"),
    [
        (POINTS, 0.0099, r"from 0\.01 to 0\.4"),
        (POINTS, 0.41, r"from 0\.01 to 0\.4"),
        (CASCADE, 0.009, r"from 0\.01 to 0\.04"),
        (CASCADE, 0.041, r"from 0\.01 to 0\.04"),
    ],
)
def test_what_is_out_of_reach_is_refused(
    points: OperatingPoints, budget: float, reach: str
) -> None:
    with pytest.raises(ConfigError, match=f"out of this network's reach: give a share {reach}"):
        points.at([0.02, budget], 2, budget_input=False)


def test_a_cascades_rows_are_met_and_what_lies_between_is_interpolated() -> None:
    first, second, threshold = CASCADE.members_at(asked(0.01, 0.02, 0.04))
    np.testing.assert_allclose(first, [0.01, np.sqrt(0.01 * 0.02), 0.02], rtol=1e-6)
    np.testing.assert_allclose(second, [0.02, 0.04, 0.08], rtol=1e-6)
    np.testing.assert_allclose(threshold, [0.0, 0.45, 0.9], rtol=1e-6, atol=1e-6)
    assert first.dtype == second.dtype == threshold.dtype == np.float32


def test_how_images_are_operated() -> None:
    """Multipliers and the gates' budgets: of the target, of a budget, of a cascade."""
    alone = POINTS.at(None, 2, budget_input=False)
    assert alone.thresholds == ()
    assert [(m.multiplier.tolist(), m.budget) for m in alone.members] == [(0.5, None)]
    (member,) = POINTS.at(None, 2, budget_input=True).members
    assert (member.multiplier, member.budget.tolist()) == (0.5, pytest.approx([0.1, 0.1]))
    (member,) = POINTS.at([0.01, 0.4], 2, budget_input=True).members
    np.testing.assert_allclose(member.multiplier, [4, -2])
    np.testing.assert_allclose(member.budget, [0.01, 0.4])
    np.testing.assert_allclose(member.of(np.array([1])).multiplier, [-2])
    np.testing.assert_allclose(member.of(np.array([1])).budget, [0.4])
    # A gate alone may take a budget; who names none asks for the target.
    (member,) = OperatingPoints(multiplier=3.0).at(0.25, 1, budget_input=True).members
    assert (member.multiplier, member.budget) == (3.0, 0.25)
    both = CASCADE.at(None, 1, budget_input=True)
    np.testing.assert_allclose([m.budget[0] for m in both.members], [np.sqrt(2e-4), 0.04], 1e-6)
    wanted = CASCADE.multipliers_at(asked(np.sqrt(2e-4), 0.04))
    np.testing.assert_allclose([m.multiplier[0] for m in both.members], wanted, rtol=1e-5)
    assert [each.tolist() for each in both.thresholds] == [pytest.approx([0.45])]


@pytest.mark.parametrize(
    ("points", "budget", "budget_input", "message"),
    [
        (OperatingPoints(), 0.1, False, "takes none: leave budget out"),
        (OperatingPoints(), None, True, r"needs a budget: a computation share in \(0, 1\]"),
        (POINTS, 0.0, False, "budget 0.0 is out of range"),
    ],
)
def test_budgets_that_a_network_does_not_take(
    points: OperatingPoints, budget: float | None, budget_input: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        points.at(budget, 1, budget_input)


def test_which_budgets_may_be_named() -> None:
    none = OperatingPoints(target=0.1)
    assert (none.range, none.budgets(False), none.budgets(True)) == (None, None, (0.0, 1.0))
    assert (POINTS.budgets(False), POINTS.budgets(True)) == ((0.01, 0.4), (0.01, 0.4))
    assert CASCADE.range == (0.01, 0.04)


def test_one_budget_for_all_or_one_for_each() -> None:
    assert checked_budgets(0.1, 3).tolist() == pytest.approx([0.1] * 3)
    assert checked_budgets([0.1, 0.2, 1], 3).tolist() == pytest.approx([0.1, 0.2, 1])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget 0 is out of range"),
        (1.01, "budget 1.01 is out of range"),
        (float("nan"), "budget nan is out of range"),
        ([0.1, 0.2], "shape"),
        ("much", "no number"),
    ],
)
def test_bad_budgets(budget: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_budgets(budget, 3)


@pytest.mark.parametrize(
    "curve",
    [
        [[0.1, 0.0]],
        [[0.1, 0.0], [0.1, -1.0]],
        [[0.1, 0.0], [0.2, 0.0]],
        [[0.2, -1.0], [0.1, 0.0]],
        [[0.0, 0.0], [0.1, -1.0]],
        [[0.1, 0.0], [1.5, -1.0]],
        [[0.1, 0.0], [0.5, float("-inf")]],
        [[0.1, 0.0], [0.5, -1e39]],
    ],
)
def test_curves_that_are_not_monotonic_are_refused(curve: Any) -> None:
    with pytest.raises(ValidationError, match="curve"):
        OperatingPoints(multiplier_curve=curve)


BAD: dict[str, tuple[Any, Any, str]] = {
    "one row": (ROWS[:1], {}, "two rows"),
    "no curve": (ROWS, {"multiplier_curve": []}, "a multiplier curve for its members"),
    "descends": (ROWS[::-1], {}, "must ascend"),
    "off the curve": (ROWS, {"multiplier_curve": (*CURVE[:1], (0.05, 1.0))}, "on the mul"),
    "dearer first": (((0.01, 0.03, 0.02, 0.5), ROWS[1]), {}, "on the multiplier curve"),
    "no probability": ((ROWS[0], (0.04, 0.02, 0.08, 1.5)), {}, "cascade"),
    "no target": (ROWS, {"target": None}, "needs a target"),
    "target out of reach": (ROWS, {"target": 0.05}, "needs a target"),
}


@pytest.mark.parametrize("name", BAD)
def test_cascades_that_cannot_be_are_refused(name: str) -> None:
    cascade, changes, message = BAD[name]
    with pytest.raises(ValidationError, match=message):
        CASCADE.changed(cascade=cascade, **changes)


def test_they_are_changed_as_a_whole_and_stay_as_they_are() -> None:
    other = CASCADE.changed(cascade=(), target=0.3)
    assert (other.target, other.cascade, other.multiplier_curve) == (0.3, (), CURVE)
    assert CASCADE.target == 0.02
    with pytest.raises(ValidationError, match="frozen"):
        CASCADE.target = 0.3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="lean"):
        CASCADE.changed(lean=1.0)
