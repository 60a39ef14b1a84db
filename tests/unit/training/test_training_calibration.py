"""Leaning decisions until the mean cost meets the target."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.evaluation import predict
from fracskip.training.calibration import measure_curve, meet_target


def images(net: DynamicNetwork, count: int = 64) -> ImageSet:
    size = net.spec.image
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, *size.size, size.channels), dtype=np.uint8)
    names = net.spec.class_names
    labels = np.arange(count) % len(names)
    return ImageSet(pixels, labels.astype(np.int64), names, "noise", "test", "numpy")


def spread(net: DynamicNetwork) -> None:
    """Gates that tell images apart, so that a lean moves some and not others."""
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
    cp = meet_target(net, data, target)
    after = predict(net, data.images)
    assert costs[after.decisions].mean() == pytest.approx(cp, abs=1e-6)
    assert abs(cp - target) <= abs(costs[before.decisions].mean() - target)
    # Leaning goes one way: up if the cost was too low, down if it was too high.
    assert (net.spec.lean >= 0) == (costs[before.decisions].mean() <= target)


def test_extreme_targets_reach_the_first_and_the_last_option(
    make_net: Callable[..., DynamicNetwork],
) -> None:
    net = make_net()
    spread(net)
    assert meet_target(net, images(net), 1.0) == net.options.costs[-1]
    net.spec = net.spec.model_copy(update={"lean": 0.0})
    lowest = meet_target(net, images(net), 1e-9)
    assert lowest == net.options.costs[0]


def test_a_network_on_its_target_is_left_alone(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    spread(net)
    data = images(net)
    exact = float(np.array(net.options.costs)[predict(net, data.images).decisions].mean())
    meet_target(net, data, exact)
    assert net.spec.lean == 0.0


def test_a_curve_meets_its_budgets(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    spread(net)
    data = images(net, 256)
    net.spec = net.spec.model_copy(update={"lean": 0.5})
    budgets = [0.05, 0.1, 0.2, 0.4, 0.8]
    measure_curve(net, data, budgets, images=256)
    assert net.spec.lean == 0.5  # what it was trained for stays
    assert len(net.spec.curve) == len(budgets)
    costs = np.array(net.options.costs)
    realised = [
        costs[predict(net, data.images, budget=budget).decisions].mean() for budget in budgets
    ]
    np.testing.assert_allclose(realised, budgets, rtol=0.1)
    between = costs[predict(net, data.images, budget=0.15).decisions].mean()
    assert realised[1] < between < realised[2]


def test_budgets_that_no_lean_meets_are_left_out(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net(options=["skip", 4, 8])  # never above 6.25%
    spread(net)
    measure_curve(net, images(net), [0.02, 0.04, 0.3, 0.9])
    assert [round(cost, 1) for cost, _ in net.spec.curve] == [0.0, 0.0]
    measure_curve(net, images(net), [0.3, 0.9])
    assert net.spec.curve == ()


def test_a_network_without_a_curve_takes_no_budget(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net()
    with pytest.raises(ConfigError, match="takes none: leave budget out"):
        predict(net, images(net).images, budget=0.1)
    static = make_net(options=["8"], target=None)
    with pytest.raises(ConfigError, match="takes none"):
        predict(static, images(static).images, budget=0.1)
