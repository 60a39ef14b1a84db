import itertools
import json
import math

import pytest
import torch

from fracskip.config import JointStage
from fracskip.training.objective import LARGEST_SUBSIDY, CostPrice, paper_penalty, target_at


def cost(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


# -- target ---------------------------------------------------------------------------------------


def test_the_target_falls_on_a_straight_line_in_log_cost() -> None:
    config = JointStage(target=0.01, descent=0.4)
    assert target_at(config, 1.0, 0.0) == 1.0
    assert target_at(config, 1.0, 0.2) == pytest.approx(0.1)
    assert target_at(config, 1.0, 0.1) == pytest.approx(math.sqrt(0.1))
    assert target_at(config, 1.0, 0.4) == 0.01
    assert target_at(config, 1.0, 0.99) == 0.01
    assert target_at(config, 0.0625, 0.0) == 0.0625  # where the top option is 8 bits


def test_the_target_at_its_corners() -> None:
    assert target_at(JointStage(target=0.3, descent=0.0), 1.0, 0.0) == 0.3
    assert target_at(JointStage(target=1.0), 1.0, 0.1) == 1.0
    # Nothing to fall from: 8 bits everywhere cost less than a tenth already.
    assert target_at(JointStage(target=0.1), 0.0625, 0.0) == 0.1


# -- price ----------------------------------------------------------------------------------------


def test_the_price_follows_the_error() -> None:
    price = CostPrice(rate=0.01)
    # Half above the target: the error is 0.5, the integral 0.005, the answer 10 x 0.005 more.
    loss = price.penalty(cost(0.1, 0.2), target=0.1)
    assert price.integral == pytest.approx(0.005)
    assert loss.item() == pytest.approx((0.005 + 0.05) * 1.5)
    # Half under it: the integral is back at zero, the immediate answer is a subsidy.
    loss = price.penalty(cost(0.05), target=0.1)
    assert price.integral == pytest.approx(0.0, abs=1e-8)
    assert loss.item() == pytest.approx(-0.05 * 0.5)


def test_the_price_rises_above_the_target_and_falls_under_it() -> None:
    price = CostPrice(rate=0.02)
    rising = []
    for _ in range(5):
        price.penalty(cost(0.3), target=0.2)
        rising.append(price.integral)
    assert all(a < b for a, b in itertools.pairwise(rising))
    falling = []
    for _ in range(5):
        price.penalty(cost(0.15), target=0.2)
        falling.append(price.integral)
    assert all(a > b for a, b in itertools.pairwise([rising[-1], *falling]))


def test_the_subsidy_is_bounded() -> None:
    price = CostPrice(rate=0.05)
    for _ in range(40):
        price.penalty(cost(0.0001), target=0.5)
    assert price.integral == -LARGEST_SUBSIDY
    price.penalty(cost(1.0), target=0.5)
    assert price.integral == pytest.approx(-LARGEST_SUBSIDY + 0.05)


def test_far_above_the_target_says_no_more_than_above() -> None:
    far, further = CostPrice(0.01), CostPrice(0.01)
    far.penalty(cost(0.2), target=0.1)
    further.penalty(cost(1.0), target=0.1)
    assert far.integral == further.integral == 0.01


def test_the_penalty_pushes_the_costs_down_and_the_price_is_no_part_of_the_graph() -> None:
    costs = cost(0.4, 0.2)
    CostPrice(rate=0.1).penalty(costs, target=0.2).backward()
    # d/dcost of price x mean / target, price = 0.1 x 0.5 + 10 x 0.1 x 0.5
    assert costs.grad is not None
    assert costs.grad.tolist() == pytest.approx([0.55 / 2 / 0.2] * 2)


def test_the_state_is_one_number() -> None:
    one = CostPrice(rate=0.03)
    for value in (0.9, 0.3, 0.17):
        one.penalty(cost(value), target=0.15)
    other = CostPrice(rate=0.03, integral=json.loads(json.dumps(one.integral)))
    for value in (0.2, 0.1, 0.3):
        a, b = one.penalty(cost(value), 0.15), other.penalty(cost(value), 0.15)
        assert a.item() == b.item()
    assert one.integral == other.integral


# -- the paper's ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "sign"), [(0.3, 1.0), (0.1, -1.0), (0.2, -1.0)])
def test_the_papers_penalty_changes_sign_at_the_target(mean: float, sign: float) -> None:
    costs = torch.tensor([mean, mean], dtype=torch.float64, requires_grad=True)
    penalty = paper_penalty(costs, target=0.2, beta=1e-3, blocks=10)
    assert penalty.item() == pytest.approx(sign * 1e-3 * 128 * 10 * mean)
    penalty.backward()
    assert costs.grad is not None
    assert costs.grad.tolist() == pytest.approx([sign * 1e-3 * 128 * 10 / 2] * 2)
