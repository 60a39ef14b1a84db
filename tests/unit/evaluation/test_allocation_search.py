"""The search for one allocation that all images take: least sensitivity within a budget."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fracskip.data import ImageSet
from fracskip.options import OptionSet

ROOT = Path(__file__).parents[3]
COSTS = np.array([0.0, 0.25, 1.0])
# Of the three options in each of four blocks: the second block must run, the last may be skipped.
SENSITIVITIES = np.array([[0.5, 0.1, 0.0], [9.0, 2.0, 0.0], [0.8, 0.2, 0.0], [0.01, 0.0, 0.0]])


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return runpy.run_path(str(ROOT / "tools" / "search_allocation.py"))


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.4, 0.6, 1.0])
def test_an_allocation_meets_its_budget_and_nothing_as_cheap_does_less_harm(
    tool: dict[str, Any], budget: float
) -> None:
    allocation = tool["allocate"](SENSITIVITIES, COSTS, budget)
    cost = COSTS[allocation].mean()
    assert cost <= budget
    sensitivity = SENSITIVITIES[np.arange(4), allocation].sum()
    for other in itertools.product(range(3), repeat=4):
        if COSTS[list(other)].mean() <= cost:
            assert SENSITIVITIES[np.arange(4), other].sum() >= sensitivity - 1e-9


def test_dearer_blocks_go_to_those_that_need_them(tool: dict[str, Any]) -> None:
    assert tool["allocate"](SENSITIVITIES, COSTS, 0.4).tolist() == [1, 2, 1, 0]
    assert tool["allocate"](SENSITIVITIES, COSTS, 1.0)[:3].tolist() == [2, 2, 2]


class Additive:
    """A session whose loss is the sum of what each block's option does."""

    options = OptionSet.of([4, 8, "full"])
    plan = SimpleNamespace(gated=(0, 1, 2, 3))

    def run(self, images: Any, decisions: Any) -> Any:
        sensitivity = SENSITIVITIES[np.arange(4), decisions].sum(1)
        # Two classes, the first right: log(1 + exp(-logit)) is the sensitivity, and 0.05 more.
        logit = -np.log(np.expm1(sensitivity + 0.05))
        return SimpleNamespace(logits=np.stack([logit, np.zeros_like(logit)], 1))


def test_the_search_measures_what_it_adds_up(tool: dict[str, Any]) -> None:
    session, images = Additive(), np.zeros((5, 8, 8, 3), np.uint8)
    data = ImageSet(images, np.zeros(5, np.int64), ("a", "b"), "none", "train", "numpy")
    allocation = np.array([1, 2, 1, 0], np.uint8)
    wanted = SENSITIVITIES[np.arange(4), allocation].sum() + 0.05
    assert tool["loss"](session, data, allocation) == pytest.approx(wanted)
    costs = np.array(session.options.costs)
    known: dict[bytes, float] = {}
    for budget in (0.03, 0.1, 0.3):
        found = tool["search"](session, data, budget, known)
        cost = costs[found].mean()
        assert cost <= budget
        least = min(
            SENSITIVITIES[np.arange(4), other].sum()
            for other in itertools.product(range(3), repeat=4)
            if costs[list(other)].mean() <= cost
        )
        assert SENSITIVITIES[np.arange(4), found].sum() == pytest.approx(least)
    with pytest.raises(ValueError, match="no allocation costs"):
        tool["search"](session, data, 0.001, {})
