"""How far head outputs of gates are shrunk towards their means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.config import Recipe
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.training import shrinkage, validation
from fracskip.training.shrinkage import Shrinkage

Make = Callable[..., DynamicNetwork]
OPTIONS = ["skip", "2", "4", "8"]
GATES: list[dict[str, Any]] = [
    {"width": 4, "block_bias": True},
    {"width": 4, "kind": "feedforward"},
    {"width": 4, "block_bias": True, "output": "sensitivity", "budget_input": True},
]


def network(make_net: Make, gate: dict[str, Any]) -> DynamicNetwork:
    net = make_net(options=OPTIONS, gate=gate)
    assert net.gate is not None
    if net.gate.output == "sensitivity":
        # Far from sensitivities of more than a nat, which are all the same.
        torch.nn.init.zeros_(net.gate.out.bias)
        usual = torch.tensor([-2.0, -3, -4, -6]).expand(len(net.blocks), -1)
        net.gate.shrink(0.7, 0.7 * usual)
    return net


def outputs(net: DynamicNetwork, images: torch.Tensor, budget: float | None) -> torch.Tensor:
    assert net.gate is not None
    with torch.no_grad():
        return net.gate.outputs_of(net.gate_scores(images, budget))


def pictures(net: DynamicNetwork, count: int = 60) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = np.zeros(count, np.int64)
    return ImageSet(pixels, labels, net.spec.class_names, "noise", "validation", "drawn")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_differences_between_images_shrink(
    make_net: Make, gate: dict[str, Any], share: float
) -> None:
    net = network(make_net, gate)
    assert net.gate is not None
    images = torch.randn(16, 3, 8, 8)
    given = 0.02 if gate.get("budget_input") else None
    before = outputs(net, images, given)
    centre = before.mean(0)
    net.gate.shrink(share, share * centre)
    torch.testing.assert_close(
        outputs(net, images, given), centre + (1 - share) * (before - centre), atol=1e-4, rtol=1e-4
    )


def test_a_recurrent_gate_needs_a_bias_for_each_block(make_net: Make) -> None:
    net = make_net(options=OPTIONS)
    assert net.gate is not None
    with pytest.raises(ConfigError, match=r"gates.shrinkage and gates.block_shrinkage to \[\]"):
        net.gate.shrink(0.5, torch.zeros(len(net.blocks), len(OPTIONS)))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_share_of_the_least_loss_is_taken(
    make_net: Make, gate: dict[str, Any], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses at two budgets are given; the least sum counts, though another has the least one."""
    net, shares = network(make_net, gate), (1.0, 0.75, 0.0)
    pairs = [(3.0, 0.5)] * 3
    pairs[best] = (1.0, 1.0)
    given = iter([loss for pair in pairs for loss in pair])
    answers = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        answers.append(logits)
        assert len(logits) == len(labels) == 60
        return torch.tensor(next(given))

    monkeypatch.setattr(validation.F, "cross_entropy", loss)
    monkeypatch.setattr(shrinkage, "FAR_OFF", float("inf"))
    before, training = copy.deepcopy(net.state_dict()), net.training
    found = shrinkage.choose_shrinkage(net, pictures(net), (0.01, 0.02), shares)
    assert found.shrinkage == Shrinkage(shares[best])
    assert net.training == training
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert net.gate is not None
    net.gate.shrink(found.shrinkage.images, found.added)
    assert not torch.equal(answers[0], answers[4])  # other decisions, other answers
    images = torch.randn(16, 3, 8, 8)
    apart = outputs(net, images, 0.02 if gate.get("budget_input") else None).std(0).max()
    if best == 0:
        assert apart < 1e-5
    else:
        assert apart > 1e-3
    same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert same == (best == 2)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_differences_between_blocks_shrink(
    make_net: Make, gate: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sets images apart stays, and so does the mean over blocks."""
    net = network(make_net, gate)
    images, given = torch.randn(16, 3, 8, 8), 0.02 if gate.get("budget_input") else None
    before = outputs(net, images, given)
    centre = shrinkage._ShrunkOutputs(net, pictures(net), (0.02,), 60).centre
    found = shrinkage.choose_shrinkage(net, pictures(net), (0.02,), (), (share,))
    assert found.shrinkage == Shrinkage(0.0, share)
    assert net.gate is not None
    net.gate.shrink(found.shrinkage.images, found.added)
    level = centre.mean(0)
    wanted = before - centre + level + (1 - share) * (centre - level)
    torch.testing.assert_close(outputs(net, images, given), wanted, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_shares_that_miss_a_budget_come_last(
    make_net: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike for all images and blocks, decisions change all at once: 1% lies between two widths."""
    net = network(make_net, GATES[0])
    assert net.gate is not None
    shrunk = shrinkage._ShrunkOutputs(net, pictures(net), (0.01,), 60)
    missed, worse = shrunk.loss(Shrinkage(1.0, 1.0))
    monkeypatch.setattr(shrinkage, "FAR_OFF", float("inf"))
    assert (missed, shrunk.loss(Shrinkage(1.0, 1.0))) == (1, (0, worse))


@torch.no_grad()
def test_budgets_between_those_with_a_loss_are_to_be_met_too(make_net: Make) -> None:
    net = network(make_net, GATES[0])
    shrunk = shrinkage._ShrunkOutputs(
        net, pictures(net), (0.01, 0.0102, 0.0104, 0.0106, 0.0108, 0.011), 60
    )
    measured: list[torch.Tensor] = []
    shrunk._loss = lambda chosen: measured.append(chosen) or 0.0  # type: ignore[assignment]
    missed, _ = shrunk.loss(Shrinkage(1.0, 1.0))
    assert (missed, len(measured)) == (6, 3)


@pytest.mark.parametrize(("losses", "best"), [((2.0, 1.0, 5.0, 4.0), 1), ((1.0, 2.0, 5.0, 4.0), 0)])
def test_blocks_are_chosen_first_and_without_images(
    make_net: Make, losses: tuple[float, ...], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, given, asked = network(make_net, GATES[0]), iter(losses), []

    def loss(_: shrinkage._ShrunkOutputs, shares: Shrinkage) -> tuple[int, float]:
        asked.append(shares)
        return 0, next(given)

    monkeypatch.setattr(shrinkage._ShrunkOutputs, "loss", loss)
    found = shrinkage.choose_shrinkage(net, pictures(net), (0.02,), (0.9, 0.0), (0.75, 0.0))
    blocks = (0.75, 0.0)[best]
    assert asked[:2] == [Shrinkage(0.9, 0.75), Shrinkage(0.9, 0.0)]
    assert asked[2:] == [Shrinkage(0.9, blocks), Shrinkage(0.0, blocks)]
    assert found.shrinkage == Shrinkage(0.0, blocks)


def test_a_run_chooses_once_its_gates_are_trained(
    tiny_recipe: Callable[..., Recipe], run: Any
) -> None:
    tree: dict[str, Any] = {
        "options": OPTIONS,
        "gate": {"width": 6, "block_bias": True},
        "gates": {"epochs": 1, "shrinkage": [1.0, 0.5], "block_shrinkage": [0.75, 0.25]},
        "joint": {
            "epochs": 1,
            "allocation": "batch",
            "gate_lr": 0,
            "target": 0.02,
            "norm_images": 24,
        },
    }
    done = run(tiny_recipe(**tree), "shrunk")
    assert done.epochs[-1]["shrinkage"]["images"] in (1.0, 0.5)
    assert done.epochs[-1]["shrinkage"]["blocks"] in (0.75, 0.25)
    tree["gates"].update(shrinkage=[], block_shrinkage=[])
    assert "shrinkage" not in run(tiny_recipe(**tree), "plain").epochs[-1]
