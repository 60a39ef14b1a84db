"""What a cascade's members cost."""

from __future__ import annotations

import numpy as np
import pytest

from fracskip.cost import account
from fracskip.errors import ConfigError
from fracskip.operating import Execution
from fracskip.options import OptionSet
from support.profiles import BACKBONE, NETWORK

OPTIONS = OptionSet.of("paper")  # skip, 8, 16, full: costs 0, 1/16, 1/4, 1
FIRST = Execution(np.arange(3), np.array([[1, 1], [1, 0], [2, 2]]))


def test_both_members_are_paid_for() -> None:
    second = Execution(np.array([1]), np.array([[3, 2]]))
    once, twice = account([FIRST], OPTIONS, NETWORK), account([FIRST, second], OPTIONS, NETWORK)
    np.testing.assert_allclose(twice.image_cp - once.image_cp, [0, (1 + 1 / 4) / 2, 0])
    # One image in three: the second member's branches, and what it executes at least.
    again = 1600 + 3200 / 4 + 20 + 50 + 7 + 9
    assert twice.bitops_ratio - once.bitops_ratio == pytest.approx(again / 3 / BACKBONE)


def test_nothing_is_paid_where_nothing_is_escalated() -> None:
    none = Execution(np.array([], int), np.empty((0, 2), int))
    found = account([FIRST, none], OPTIONS, NETWORK)
    assert found.bitops_ratio == account([FIRST], OPTIONS, NETWORK).bitops_ratio


@pytest.mark.parametrize(
    ("rows", "decisions", "message"),
    [
        ([1, 2], [[1, 1]], "decisions of 1 images do not fit 2 rows"),
        ([1], [[1, 1, 1]], r"shape \(1, 3\) do not fit"),
        ([1], [[1, 4]], "option indices from 0 to 3"),
    ],
)
def test_a_member_that_does_not_fit_is_refused(rows: list, decisions: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        account([FIRST, Execution(np.array(rows), np.array(decisions))], OPTIONS, NETWORK)
