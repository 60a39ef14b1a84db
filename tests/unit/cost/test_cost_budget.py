"""Budgets become leans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fracskip.config import ModelSpec
from fracskip.cost import BudgetCurve, checked_budgets
from fracskip.errors import ConfigError

CURVE = BudgetCurve(((0.01, -4.0), (0.1, 0.0), (0.4, 2.0)))


def test_measured_points_keep_their_leans() -> None:
    np.testing.assert_allclose(CURVE.leans_at(np.float32([0.01, 0.1, 0.4])), [-4, 0, 2], atol=1e-5)


def test_between_them_it_is_linear_in_log_cost() -> None:
    middle = np.float32([np.sqrt(0.01 * 0.1), np.sqrt(0.1 * 0.4)])
    np.testing.assert_allclose(CURVE.leans_at(middle), [-2, 1], atol=1e-5)
    leans = CURVE.leans_at(np.geomspace(0.01, 0.4, 50).astype(np.float32))
    assert (np.diff(leans) > 0).all()


@pytest.mark.parametrize("budget", [0.0099, 0.41])
def test_what_is_out_of_reach_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"out of this network's reach: give a share from 0\.01"):
        CURVE.leans_at(np.float32([0.1, budget]))


def test_an_end_that_was_rounded_is_still_an_end() -> None:
    assert CURVE.leans_at(np.float32([0.009995]))[0] == -4


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
        [[0.1, 0.0], [0.1, 1.0]],
        [[0.1, 0.0], [0.2, 0.0]],
        [[0.2, 1.0], [0.1, 0.0]],
        [[0.0, 0.0], [0.1, 1.0]],
        [[0.1, 0.0], [1.5, 1.0]],
        [[0.1, 0.0], [0.5, float("inf")]],
    ],
)
def test_curves_that_do_not_ascend_are_refused(tiny_spec: Any, curve: Any) -> None:
    with pytest.raises(ValueError, match="curve"):
        tiny_spec(curve=curve)


def test_a_spec_says_what_it_takes(tiny_spec: Any) -> None:
    spec: ModelSpec = tiny_spec()
    assert (spec.takes_budget, spec.budgets) == (False, None)
    spec = tiny_spec(curve=[[0.1, -1.0], [0.2, 1.0]])
    assert (spec.takes_budget, spec.budgets) == (True, (0.1, 0.2))
    spec = tiny_spec(gate={"width": 4, "budget_input": True})
    assert (spec.takes_budget, spec.budgets) == (True, (0.0, 1.0))
