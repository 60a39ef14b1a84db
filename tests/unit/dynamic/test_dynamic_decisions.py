"""Who decides: gates, budgets, multipliers, or the caller."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import (
    COUNT,
    GATES,
    close,
    every_option,
    exploration,
    make_images,
    make_network,
    make_spec,
)
from torch import Tensor

from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.operating import OperatingPoints, Prediction


def test_gate_scores_are_those_along_the_top_option() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, COUNT)
    scores = net.gate_scores(images)
    assert scores.shape == (COUNT, len(net.blocks), len(net.options))
    # Up to the first block everybody sees the same input.
    assert torch.equal(scores[:, 0].argmin(-1), net(images).decisions[:, 0])
    assert net.gate is not None
    with torch.no_grad():  # gates that always choose the top go the same way
        net.gate.out.bias += torch.tensor([0.0, 0.0, 0.0, 1e4])
    again = net.gate_scores(images)
    close(again[..., :3], scores[..., :3])
    assert (net(images).decisions == 3).all()
    again.sum().backward()
    assert all(p.grad is not None for p in net.gate.parameters())
    assert all(p.grad is None for p in net.backbone.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_a_budget_reaches_the_gates(gate: str) -> None:
    net = make_network(make_spec(gate=gate, budget_input=True))
    net.operating_points = OperatingPoints(target=0.3)
    assert net.gate is not None
    assert net.gate.budget_embed is not None
    with torch.no_grad():
        net.gate.budget_embed.weight.normal_(0, 20)
    images = make_images(net.spec, COUNT)
    low, high = net(images, budget=0.01), net(images, budget=1.0)
    assert not torch.equal(low.decisions, high.decisions)
    mixed = net(images, budget=torch.tensor([0.01, 1.0] * 3))
    assert torch.equal(mixed.decisions[::2], low.decisions[::2])
    assert torch.equal(mixed.decisions[1::2], high.decisions[1::2])
    # Without one, it is what the network was trained for.
    assert torch.equal(net(images).decisions, net(images, budget=0.3).decisions)
    assert torch.equal(net.gate_scores(images), net.gate_scores(images, 0.3))
    assert not torch.equal(net.gate_scores(images), net.gate_scores(images, 0.9))
    with pytest.raises(ConfigError, match="out of range"):
        net(images, budget=0.0)


def test_budget_errors() -> None:
    spec = make_spec(budget_input=True)
    with pytest.raises(ConfigError, match="needs a budget"):
        make_network(spec)(make_images(spec))
    spec = make_spec()
    net = make_network(spec)
    net.operating_points = OperatingPoints(target=0.3)
    net(make_images(spec))  # the target alone is no budget for a gate that takes none
    with pytest.raises(ConfigError, match="leave budget out"):
        net(make_images(spec), budget=0.3)


def test_decisions_that_do_not_fit_are_refused() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, 2)
    for shape in ((2, 4), (1, 5), (2,), (2, 5, 1), (3, 5)):
        with pytest.raises(ConfigError, match=r"do not fit: integers of shape \(2, 5\)"):
            net(images, decisions=torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"float32 do not fit"):
        net(images, decisions=torch.zeros(2, 5))
    for bad in (-1, 4):
        decisions = net.forced("skip", 2)
        decisions[1, 3] = bad
        with pytest.raises(ConfigError, match="option indices, 0 to 3"):
            net(images, decisions=decisions)
    narrow = every_option(net, 2).to(torch.uint8)
    assert torch.equal(net(images, decisions=narrow).decisions, every_option(net, 2))


def test_forced_decisions() -> None:
    net = make_network(make_spec())
    for index, label in enumerate(net.options.labels):
        assert net.forced(label, 3).tolist() == [[index] * 5] * 3
    assert net.forced(8, 1).tolist() == [[2] * 5]
    with pytest.raises(ConfigError, match="'16' is not in this set"):
        net.forced(16, 1)


def test_ties_go_to_the_first_option() -> None:
    net = make_network(make_spec(gate="feedforward"))
    assert net.gate is not None
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
    assert (net(make_images(net.spec)).decisions == 0).all()
    with torch.no_grad():
        for out in net.gate.out:
            out.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    for mode in (None, exploration(), exploration(dense=True)):
        assert (net(make_images(net.spec), exploration=mode).decisions == 1).all()


@pytest.mark.parametrize("gate", GATES)
def test_a_multiplier_moves_decisions_by_rank_at_evaluation_alone(gate: str) -> None:
    plain = make_network(make_spec(gate=gate))
    images = make_images(plain.spec, COUNT)

    def operated(multiplier: float) -> DynamicNetwork:
        net = copy.deepcopy(plain)
        net.operating_points = OperatingPoints(multiplier=multiplier)
        return net

    # At the first gated block the scores are the same whatever was chosen before.
    scores = plain.gate_scores(images)[:, 0]
    seen = set()
    for multiplier in (4.0, 0.5, 0.0, -0.5, -4.0):
        rows = scores + multiplier * torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
        wanted = [row.index(min(row)) for row in rows.tolist()]
        assert operated(multiplier)(images).decisions[:, 0].tolist() == wanted
        given = OperatingPoints(multiplier=multiplier)
        assert plain(images, points=given).decisions[:, 0].tolist() == wanted
        seen.add(tuple(wanted))
    assert len(seen) > 1
    assert (operated(-1e4)(images).decisions == 3).all()
    assert (operated(1e4)(images).decisions == 0).all()
    # Forced decisions, training and the gates' own scores know nothing of it.
    forced = every_option(plain, COUNT)
    assert torch.equal(operated(-1e4)(images, decisions=forced).decisions, forced)
    trained = operated(-1e4)(images, exploration=exploration(dense=True)).decisions
    assert torch.equal(trained, plain(images).decisions)
    assert torch.equal(operated(-1e4).gate_scores(images), plain.gate_scores(images))
    assert not {"mask", "cost_weights", "_costs"} & plain.state_dict().keys()


def test_operating_points_are_for_networks_that_decide() -> None:
    net = make_network(make_spec(options=["8"]))
    curve = ((0.01, 1.0), (0.1, 0.0))
    for assign in (
        lambda points: setattr(net, "operating_points", points),
        lambda points: net(make_images(net.spec), points=points),
    ):
        with pytest.raises(ConfigError, match="has nothing to decide"):
            assign(OperatingPoints(multiplier_curve=curve))
    net.operating_points = OperatingPoints(target=0.1)
    assert net.budgets is None


@pytest.mark.parametrize("dense", [False, True])
def test_a_temperature_softens_the_gradient_and_no_decision(dense: bool) -> None:
    net = make_network(make_spec(gate="feedforward")).train()
    assert net.gate is not None
    images = make_images(net.spec, COUNT)
    bias = net.gate.out[0].bias

    def run(temperature: float) -> tuple[Prediction[Tensor], Tensor]:
        net.zero_grad(set_to_none=True)
        out = net(images, exploration=exploration(dense=dense, temperature=temperature))
        out.cost.sum().backward()
        assert bias.grad is not None
        return out, bias.grad

    logits = -net.gate_scores(images)[:, 0].detach()
    outs = []
    for temperature in (1.0, 3.0):
        out, grad = run(temperature)
        leaf = logits.clone().requires_grad_()
        costs = torch.tensor(net.options.costs)
        ((leaf / temperature).softmax(-1) @ costs).sum().div(len(net.blocks)).backward()
        assert leaf.grad is not None
        torch.testing.assert_close(grad, leaf.grad.sum(0), rtol=1e-4, atol=1e-7)
        outs.append(out)
    assert torch.equal(outs[0].decisions, outs[1].decisions)
    assert torch.equal(outs[0].logits, outs[1].logits)
