"""Multipliers at which the mean cost meets what is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.config import JointStage, Recipe, recipe_from_dict
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.evaluation import predict
from fracskip.training import multipliers
from fracskip.training.finalize import fix_allocation
from fracskip.training.multipliers import multiplier_curve, target_multiplier


def images(net: DynamicNetwork, count: int = 64) -> ImageSet:
    size = net.spec.image
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, *size.size, size.channels), dtype=np.uint8)
    names = net.spec.class_names
    labels = np.arange(count) % len(names)
    return ImageSet(pixels, labels.astype(np.int64), names, "noise", "test", "numpy")


def spread(net: DynamicNetwork) -> None:
    """Gates that tell images apart, so that a multiplier moves some and not others."""
    assert net.gate is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for value in net.gate.parameters():
            value.copy_(torch.randn_like(value))


@pytest.mark.parametrize("target", [0.05, 0.3, 0.7])
def test_the_cost_comes_near_the_target(
    make_net: Callable[..., DynamicNetwork], target: float
) -> None:
    net = make_net()
    spread(net)
    data = images(net)
    before = predict(net, data.images)
    costs = np.array(net.options.costs)
    points = net.operating_points
    multiplier, cp = target_multiplier(net, data, target)
    assert net.operating_points == points  # found, not set
    net.operating_points = points.changed(multiplier=multiplier)
    after = predict(net, data.images)
    assert costs[after.decisions].mean() == pytest.approx(cp, abs=1e-6)
    assert abs(cp - target) <= abs(costs[before.decisions].mean() - target)
    # It goes one way: down if the cost was too low, up if it was too high.
    assert (multiplier <= 0) == (costs[before.decisions].mean() <= target)


def test_extreme_targets_reach_the_first_and_the_last_option(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    net = make_net()
    spread(net)
    assert target_multiplier(net, images(net), 1.0)[1] == net.options.costs[-1]
    assert target_multiplier(net, images(net), 1e-9)[1] == net.options.costs[0]


def test_a_network_on_its_target_is_left_alone(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    spread(net)
    data = images(net)
    exact = float(np.array(net.options.costs)[predict(net, data.images).decisions].mean())
    assert target_multiplier(net, data, exact)[0] == 0.0


def test_a_curve_meets_its_budgets(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    spread(net)
    data = images(net, 256)
    budgets = [0.05, 0.1, 0.2, 0.4, 0.8]
    curve = multiplier_curve(net, data, budgets, images=256)
    assert len(curve) == len(budgets)
    net.operating_points = net.operating_points.changed(multiplier_curve=curve)
    costs = np.array(net.options.costs)
    realised = [
        costs[predict(net, data.images, budget=budget).decisions].mean() for budget in budgets
    ]
    np.testing.assert_allclose(realised, budgets, rtol=0.1)
    between = costs[predict(net, data.images, budget=0.15).decisions].mean()
    assert realised[1] < between < realised[2]


@pytest.mark.parametrize("budget_input", [False, True])
def test_a_search_begins_where_the_curve_says(
    make_net: Callable[..., DynamicNetwork], monkeypatch: pytest.MonkeyPatch, budget_input: bool
) -> None:
    net = make_net(gate={"budget_input": budget_input})
    spread(net)
    data = images(net, 256)
    curve, tried = multiplier_curve(net, data, [0.1, 0.2, 0.4, 0.8], images=256), []
    assert len(curve) > 1
    net.operating_points = net.operating_points.changed(multiplier_curve=curve)
    predicted = multipliers.predicted
    monkeypatch.setattr(
        multipliers, "predicted", lambda *given: tried.append(1) or predicted(*given)
    )
    assert multiplier_curve(net, data, [cost for cost, _ in curve], images=256) == curve
    again = len(tried)
    target = (curve[0][0] + curve[1][0]) / 2
    _, cp = target_multiplier(net, data, target, images=256)
    assert cp == pytest.approx(target, rel=0.1)
    net.operating_points = net.operating_points.changed(multiplier_curve=())
    tried.clear()
    multiplier_curve(net, data, [cost for cost, _ in curve], images=256)
    assert len(curve) <= again < len(tried)


def test_budgets_that_no_multiplier_meets_are_left_out(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    net = make_net(options=["skip", 4, 8])  # never above 6.25%
    spread(net)
    curve = multiplier_curve(net, images(net), [0.02, 0.04, 0.3, 0.9])
    assert [cost for cost, _ in curve] == [0.02, 0.04]
    assert multiplier_curve(net, images(net), [0.3, 0.9]) == ()


def test_a_network_without_a_curve_takes_no_budget(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    with pytest.raises(ConfigError, match="takes none: leave budget out"):
        predict(net, images(net).images, budget=0.1)
    static = make_net(options=["8"], target=None)
    with pytest.raises(ConfigError, match="takes none"):
        predict(static, images(static).images, budget=0.1)


def test_a_gate_that_takes_a_budget_is_given_the_one_that_is_searched_for(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    gate = {"budget_input": True, "output": "sensitivity", "block_bias": True}
    net = make_net(options=["skip", 2, 4, 8], gate=gate, target=0.02)
    spread(net)
    assert net.gate is not None
    with torch.no_grad():
        net.gate.out.bias.sub_(torch.tensor([4.0, 4, 4, 20]))
    data = images(net, 256)
    multiplier, cp = target_multiplier(net, data, 0.02, images=256)
    assert cp == pytest.approx(0.02, rel=0.1)
    assert multiplier > 0  # a price
    curve = multiplier_curve(net, data, [0.005, 0.01, 0.02, 0.04], images=256)
    assert len(curve) > 1
    net.operating_points = net.operating_points.changed(multiplier_curve=curve)
    costs = np.array(net.options.costs)
    for budget, _ in curve:
        realised = costs[predict(net, data.images, budget=budget).decisions].mean()
        assert realised == pytest.approx(budget, rel=0.06)


# -- static decisions ------------------------------------------------------------------------------


def test_fixed_decisions_are_one_allocation_at_the_target(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    net = make_net(gate={"block_bias": True})
    data = images(net)
    decisions = predict(net, data.images).decisions
    assert len(np.unique(decisions, axis=0)) > 1
    costs = np.array(net.options.costs)
    target = float(costs[1])
    static = {"decisions": "static", "gate_lr": 0}
    fix_allocation(net, data, JointStage.model_validate({"target": target, **static}))
    frozen = predict(net, data.images).decisions
    assert (frozen == frozen[0]).all()
    assert net.operating_points.multiplier == 0.0
    # No nearer than one block's step between options allows.
    assert abs(costs[frozen[0]].mean() - target) <= np.diff(costs).max() / len(frozen[0])
    whole = make_net(gate={"block_bias": True})
    dearest = {"target": float(costs[-1]), **static}
    fix_allocation(whole, data, JointStage.model_validate(dearest))
    assert (costs[predict(whole, data.images).decisions] == costs[-1]).all()


def test_a_run_whose_decisions_are_static(tiny_recipe: Callable[..., Recipe], run: Any) -> None:
    tree = {
        "options": ["skip", 8, "full"],
        "quant": {"stream": "int8"},
        "gate": {"width": 6, "block_bias": True, "standardise": True},
        "gates": {"epochs": 2, "option": "8", "label": "sensitivity", "allocation": "chosen"},
    }
    joint = {"epochs": 1, "target": 0.04, "allocation": "batch", "gate_lr": 0}
    static = run(tiny_recipe(**tree, joint={**joint, "decisions": "static"}), "static")
    each = run(tiny_recipe(**tree, joint=joint), "each")
    assert static.summary["test"]["decision_entropy_bits"] == 0
    assert all(max(b["option_share"].values()) == 1 for b in static.summary["test"]["blocks"])
    # Two blocks: the nearest cost to 4% is one at 8 bits.
    assert static.summary["test"]["cp"] == pytest.approx(0.0625 / 2)
    assert static.digest != each.digest


@pytest.mark.parametrize("joint", [{}, {"gate_lr": 0, "budgets": [0.02, 0.04]}])
def test_static_decisions_leave_nothing_to_learn(joint: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'static' leave the gates nothing to learn"):
        recipe_from_dict({"name": "x", "joint": {"decisions": "static", **joint}})
