"""Gates that learn to expect what cheaper options do to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fracskip import checkpoint
from fracskip.config import Recipe, recipe_from_dict
from fracskip.errors import ConfigError
from fracskip.operating import cost_weights
from fracskip.training.objective import allocation_at, multiplier_at
from fracskip.training.sensitivities import tweedie

Make = Callable[..., Recipe]
TREE: dict[str, Any] = {
    "options": ["skip", 2, 4, 8],
    "gate": {"width": 6, "output": "sensitivity", "budget_input": True, "standardise": True},
    "gates": {"epochs": 12, "label": "sensitivity", "lr": 0.02},
    "joint": {
        "epochs": 0,
        "target": 0.02,
        "budgets": [0.005, 0.01, 0.02, 0.04],
        "norm_images": 24,
    },
}


def test_the_deviance_is_least_at_the_mean_of_heavy_tailed_values() -> None:
    torch.manual_seed(0)
    seen = torch.randn(4000).mul(2).exp()
    expected = torch.tensor(0.0, requires_grad=True)
    optimiser = torch.optim.LBFGS([expected], max_iter=50)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = tweedie(expected.exp().expand_as(seen), seen)
        loss.backward()
        return loss.detach()

    optimiser.step(closure)
    assert float(expected.detach().exp()) == pytest.approx(float(seen.mean()), rel=1e-3)


@pytest.mark.parametrize("target", [0.004, 0.01, 0.02, 0.05])
def test_a_multiplier_takes_what_saves_most_for_its_cost(target: float) -> None:
    costs = torch.tensor([0.0, 4, 9, 16, 36, 64]) / 1024
    torch.manual_seed(0)
    scale = torch.randn(60, 1).exp()
    scores = scale * torch.tensor([50.0, 8.0, 2.0, 0.7, 0.2, 0.0])
    weights = costs / costs[-1]
    multiplier = multiplier_at(scores, costs, weights, target)
    path = torch.tensor(allocation_at(scores, costs, weights, target))
    assert float(costs[path].mean()) == pytest.approx(target, rel=0.06)
    # No allocation of the same cost is less sensitive: every block is at its best for the price.
    best = (scores + multiplier * weights).min(1).values
    assert torch.equal((scores + multiplier * weights).gather(1, path[:, None])[:, 0], best)
    # What is more sensitive gets more.
    order = scale[:, 0].argsort()
    assert (costs[path[order]].diff() >= 0).all()


def test_gates_learn_what_options_do(tiny_recipe: Make, run: Any) -> None:
    done = run(tiny_recipe(**TREE), "sensitivity")
    gates = [event for event in done.epochs if event["stage"] == "gates"]
    assert gates[-1]["loss"] < gates[0]["loss"]
    net = checkpoint.load(done.folder / "model.safetensors")
    assert torch.equal(
        net.cost_weights, torch.from_numpy(cost_weights(net.options, "sensitivity", 2))
    )
    assert net.operating_points.multiplier >= 0
    torch.manual_seed(0)
    images = torch.randn(64, net.spec.image.channels, *net.spec.image.size)
    found = net.gate_scores(images, 0.02).mean((0, 1))
    # Skipping and 2 bits do more than 4, and 8 do nothing.
    assert found[0] > found[2] > found[3]
    assert found[1] > found[2]
    assert found[3] < 0.02 * found[0]


def test_a_target_without_budgets_is_descended_to(tiny_recipe: Make, run: Any) -> None:
    gate = {**TREE["gate"], "budget_input": False}
    joint = {**TREE["joint"], "budgets": [], "target": 0.02}
    done = run(tiny_recipe(**{**TREE, "gate": gate, "joint": joint}), "one")
    assert done.summary["test"]["cp"] == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("output", ["sensitivity", "harm"])  # the latter is its old name
def test_sensitivity_is_measured(output: str) -> None:
    with pytest.raises(ConfigError, match=r"gate.output 'sensitivity' .* gates.label"):
        recipe_from_dict({"name": "x", "gate": {"output": output}, "gates": {"label": "option"}})
