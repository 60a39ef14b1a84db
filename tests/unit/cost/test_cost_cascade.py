"""Looking twice: which looks meet a budget, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fracskip.cost import Cascade, FirstLooks, account
from fracskip.errors import ConfigError
from fracskip.options import OptionSet
from support.profiles import BACKBONE, NETWORK

POINTS = ((0.01, 0.01, 0.02, 0.0), (0.04, 0.02, 0.08, 0.9))
CURVE = [[0.01, -3.0], [0.08, 1.0]]
OPTIONS = OptionSet.of("paper")  # skip, 8, 16, full: costs 0, 1/16, 1/4, 1


def asked(*budgets: float) -> np.ndarray:
    return np.array(budgets, np.float32)


def test_points_are_met_and_what_lies_between_is_interpolated() -> None:
    looks = Cascade(POINTS).looks_at(asked(0.01, 0.02, 0.04))
    np.testing.assert_allclose(looks.first, [0.01, np.sqrt(0.01 * 0.02), 0.02], rtol=1e-6)
    np.testing.assert_allclose(looks.second, [0.02, 0.04, 0.08], rtol=1e-6)
    np.testing.assert_allclose(looks.confidence, [0.0, 0.45, 0.9], rtol=1e-6, atol=1e-6)
    assert looks.first.dtype == looks.second.dtype == looks.confidence.dtype == np.float32


@pytest.mark.parametrize("budget", [0.009, 0.041])
def test_budgets_out_of_reach_are_refused(budget: float) -> None:
    assert Cascade(POINTS).range == (0.01, 0.04)
    with pytest.raises(ConfigError, match=r"from 0\.01 to 0\.04"):
        Cascade(POINTS).looks_at(asked(0.02, budget))


def test_both_looks_are_paid_for() -> None:
    decisions = np.array([[1, 1], [3, 2], [0, 1]])
    first = np.array([[1, 1], [1, 0], [2, 2]])
    before = FirstLooks(first, np.array([False, True, False]))
    once = account(decisions, OPTIONS, NETWORK)
    twice = account(decisions, OPTIONS, NETWORK, before)
    np.testing.assert_allclose(twice.image_cp - once.image_cp, [0, (1 / 16) / 2, 0])
    # One image in three: its first look's branches, and what a look executes at least.
    again = 1600 / 16 + 20 + 50 + 7 + 9
    assert twice.bitops_ratio - once.bitops_ratio == pytest.approx(again / 3 / BACKBONE)


def test_nothing_is_paid_for_looks_that_there_were_not() -> None:
    decisions = np.array([[1, 1], [3, 2]])
    before = FirstLooks(decisions, np.zeros(2, bool))
    assert (
        account(decisions, OPTIONS, NETWORK, before).cp == account(decisions, OPTIONS, NETWORK).cp
    )


@pytest.mark.parametrize(("rows", "flags"), [(1, 1), (3, 3), (2, 1), (1, 2)])
def test_first_looks_of_other_images_are_refused(rows: int, flags: int) -> None:
    before = FirstLooks(np.ones((rows, 2), int), np.ones(flags, bool))
    with pytest.raises(ConfigError, match="do not fit decisions for 2"):
        account(np.array([[1, 1], [3, 2]]), OPTIONS, NETWORK, before)


def test_first_looks_are_joined_taken_and_listed() -> None:
    one = FirstLooks(np.array([[1, 2]]), np.array([True]))
    two = FirstLooks(np.array([[3, 0], [2, 2]]), np.array([False, True]))
    both = FirstLooks.joined([one, two])
    assert both.again.tolist() == [True, False, True]
    decided = np.array([[9, 9], [8, 8], [7, 7]])
    assert both.all_with(decided).tolist() == [*decided.tolist(), [1, 2], [2, 2]]
    assert both.take(np.array([False, True, True])).all_with(decided[1:]).tolist() == [
        *[[8, 8], [7, 7]],
        [2, 2],
    ]


BAD: dict[str, tuple[Any, Any, str]] = {
    "one point": (POINTS[:1], {}, "two points"),
    "no curve": (POINTS, {"curve": []}, "a curve for its looks"),
    "descends": (POINTS[::-1], {}, "must ascend"),
    "off the curve": (POINTS, {"curve": [[0.01, -3.0], [0.05, 1.0]]}, "on the curve"),
    "dearer first": (((0.01, 0.03, 0.02, 0.5), POINTS[1]), {}, "on the curve"),
    "no probability": ((POINTS[0], (0.04, 0.02, 0.08, 1.5)), {}, "cascade"),
    "no target": (POINTS, {"target": None}, "needs a target"),
    "target out of reach": (POINTS, {"target": 0.05}, "needs a target"),
}


@pytest.mark.parametrize("name", BAD)
def test_cascades_that_cannot_be_are_refused(tiny_spec: Any, name: str) -> None:
    cascade, changes, message = BAD[name]
    good = {"curve": CURVE, "target": 0.02, "cascade": POINTS}
    assert tiny_spec(**good).budgets == (0.01, 0.04)
    with pytest.raises(ValueError, match=message):
        tiny_spec(**{**good, "cascade": cascade, **changes})
