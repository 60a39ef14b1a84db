"""A cascade of one network at two budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork
from fracskip.operating import Prediction

CURVE = ((0.02, 3.0), (0.1, 0.0), (0.5, -3.0))
LOW, HIGH = 0.05, 0.4  # budgets of the two members, whatever is asked for


def cascade(threshold: float) -> tuple[tuple[float, float, float, float], ...]:
    return ((0.06, LOW, HIGH, threshold), (0.3, LOW, HIGH, threshold))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def twice(make_net: Callable[..., DynamicNetwork], rows: Any) -> DynamicNetwork:
    """The network of `single` as a cascade."""
    net = make_net(multiplier_curve=CURVE, target=0.1)
    net.operating_points = net.operating_points.changed(cascade=rows)
    return net


@pytest.fixture
def make(make_net: Callable[..., DynamicNetwork]) -> Callable[[float], DynamicNetwork]:
    return lambda threshold: twice(make_net, cascade(threshold))


def single(
    make_net: Callable[..., DynamicNetwork], images: torch.Tensor, budget: float
) -> Prediction[torch.Tensor]:
    with torch.no_grad():
        out: Prediction[torch.Tensor] = make_net(multiplier_curve=CURVE, target=0.1)(
            images, budget=budget
        )
    return out


def test_never_sure_enough_is_the_second_member_and_both_are_paid_for(
    make: Callable[[float], DynamicNetwork], make_net: Any, images: torch.Tensor
) -> None:
    cheap, dear = (single(make_net, images, budget) for budget in (LOW, HIGH))
    out = make(1.0)(images, budget=0.2)
    assert out.escalated.all()
    assert torch.equal(out.executions[0].decisions, cheap.decisions)
    assert torch.equal(out.decisions, dear.decisions)
    torch.testing.assert_close(out.logits, dear.logits)
    torch.testing.assert_close(out.cost, cheap.cost + dear.cost)
    assert (cheap.decisions != dear.decisions).any()


def test_always_sure_is_the_first_member(
    make: Callable[[float], DynamicNetwork], make_net: Any, images: torch.Tensor
) -> None:
    cheap = single(make_net, images, LOW)
    out = make(0.0)(images, budget=0.2)
    assert [len(each.rows) for each in out.executions] == [48, 0]
    assert torch.equal(out.logits, cheap.logits)
    assert torch.equal(out.cost, cheap.cost)


def test_only_uncertain_images_are_escalated(
    make: Callable[[float], DynamicNetwork], make_net: Any, images: torch.Tensor
) -> None:
    cheap, dear = (single(make_net, images, budget) for budget in (LOW, HIGH))
    sure = cheap.logits.softmax(1).amax(1)
    least = float(sure.median())
    net = make(least)
    out = net(images, budget=0.2)
    assert torch.equal(out.escalated, sure < np.float32(least))
    assert 0 < out.escalated.sum() < len(images)
    wanted = torch.where(out.escalated[:, None], dear.logits, cheap.logits)
    torch.testing.assert_close(out.logits, wanted)
    report = account(out.executions, net.options, net.profile)
    np.testing.assert_allclose(report.image_cp, out.cost.numpy(), rtol=1e-5)


def test_without_a_budget_it_meets_its_target(
    make_net: Callable[..., DynamicNetwork], images: torch.Tensor
) -> None:
    net = twice(make_net, ((0.06, 0.02, 0.1, 0.4), (0.3, 0.1, 0.5, 0.8)))
    assert torch.equal(net(images).logits, net(images, budget=0.1).logits)
    assert not torch.equal(net(images).logits, net(images, budget=0.3).logits)


def test_each_image_may_have_a_budget_of_its_own(
    make_net: Callable[..., DynamicNetwork], images: torch.Tensor
) -> None:
    net = twice(make_net, ((0.06, 0.02, 0.1, 0.4), (0.3, 0.1, 0.5, 0.8)))
    budgets = torch.linspace(0.06, 0.3, len(images))
    together = net(images, budget=budgets)
    for row in (0, 20, 47):
        alone = net(images[row : row + 1], budget=float(budgets[row]))
        assert torch.equal(alone.escalated, together.escalated[row : row + 1])
        assert torch.equal(alone.decisions, together.decisions[row : row + 1])


def test_forced_decisions_are_of_one_member(
    make: Callable[[float], DynamicNetwork], images: torch.Tensor
) -> None:
    net = make(1.0)
    out = net(images, decisions=net.forced("full", len(images)))
    assert len(out.executions) == 1
    assert torch.equal(out.cost, torch.ones(len(images)))
