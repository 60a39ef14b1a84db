"""One network, budget by budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fracskip.data import load_split
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.evaluation import evaluate, sweep
from fracskip.evaluation.sweep import POINTS, default_budgets

CURVE = ((0.05, 2.0), (0.2, 0.0), (0.6, -2.0))


@pytest.fixture
def net(make_net: Callable[..., DynamicNetwork]) -> DynamicNetwork:
    return make_net(multiplier_curve=CURVE)


def test_each_point_is_an_evaluation(net: DynamicNetwork, pictures: Path) -> None:
    data = load_split(f"folder:{pictures}", "test", net.spec.image)
    done: list[int] = []
    record = json.loads(json.dumps(sweep(net, data, [0.4, 0.1], name="x", progress=done.append)))
    assert record["schema"] == "fracskip.sweep/2"
    assert record["checkpoint"]["name"] == "x"
    assert sum(done) == 2 * len(data)
    assert [point["budget"] for point in record["points"]] == [0.1, 0.4]
    for point in record["points"]:
        alone = evaluate(net, data, budget=point["budget"], static=False, examples=0)
        assert alone["budget"] == point["budget"]
        for key in (
            "accuracy",
            "cp",
            "bitops_ratio",
            "escalation_rate",
            "option_share",
            "decision_entropy_bits",
        ):
            assert point[key] == alone[key]
        blocks = [
            {key: block[key] for key in ("name", "option_share")} for block in alone["blocks"]
        ]
        assert point["blocks"] == blocks
    assert record["points"][0]["cp"] < record["points"][1]["cp"]


def test_by_default_it_covers_what_the_network_reaches(net: DynamicNetwork, pictures: Path) -> None:
    data = load_split(f"folder:{pictures}", "test", net.spec.image)
    budgets = [point["budget"] for point in sweep(net, data)["points"]]
    assert len(budgets) == POINTS
    assert budgets[0] == pytest.approx(0.05)
    assert budgets[-1] == pytest.approx(0.6)
    assert default_budgets((0.0, 1.0))[0] == pytest.approx(0.005)


def test_a_network_for_one_budget_has_no_curve(
    make_net: Callable[..., DynamicNetwork], pictures: Path
) -> None:
    net = make_net()
    data = load_split(f"folder:{pictures}", "test", net.spec.image)
    with pytest.raises(ConfigError, match="nothing to sweep"):
        sweep(net, data)
