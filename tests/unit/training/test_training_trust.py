"""How much of what gates say of an image is believed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.config import Recipe
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import ConfigError
from fracskip.training.objective import lean_to
from fracskip.training.trust import choose_trust

Make = Callable[..., DynamicNetwork]
OPTIONS = ["skip", "2", "4", "8"]
GATES: list[dict[str, Any]] = [
    {"width": 4, "block_bias": True},
    {"width": 4, "kind": "feedforward"},
    {"width": 4, "block_bias": True, "output": "harm", "budget_input": True},
]
BUDGETS = (0.01, 0.02)


def network(make_net: Make, gate: dict[str, Any]) -> DynamicNetwork:
    net = make_net(options=OPTIONS, gate=gate)
    assert net.gate is not None
    if net.gate.output == "harm":
        # Far from harms of more than a nat, which are all the same.
        usual = torch.tensor([-2.0, -3, -4, -6]).expand(len(net.blocks), -1)
        net.gate.trust(0.1, usual)
    return net


def said(net: DynamicNetwork, images: torch.Tensor, budget: float | None) -> torch.Tensor:
    assert net.gate is not None
    with torch.no_grad():
        return net.gate.said_by(net.gate_logits(images, budget))


def pictures(net: DynamicNetwork, count: int = 60) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = np.zeros(count, np.int64)
    return ImageSet(pixels, labels, net.spec.class_names, "noise", "validation", "drawn")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_gates_say_less_of_what_sets_an_image_apart(
    make_net: Make, gate: dict[str, Any], share: float
) -> None:
    net = network(make_net, gate)
    assert net.gate is not None
    images = torch.randn(16, 3, 8, 8)
    told = 0.02 if gate.get("budget_input") else None
    before = said(net, images, told)
    centre = before.mean(0)
    net.gate.trust(share, centre)
    torch.testing.assert_close(
        said(net, images, told), centre + share * (before - centre), atol=1e-4, rtol=1e-4
    )


def test_a_recurrent_gate_needs_a_bias_for_each_block(make_net: Make) -> None:
    net = make_net(options=OPTIONS)
    assert net.gate is not None
    with pytest.raises(ConfigError, match=r"set gate.block_bias to true, or gates.trusts to \[\]"):
        net.gate.trust(0.5, torch.zeros(len(net.blocks), len(OPTIONS)))


def leaned_answers(net: DynamicNetwork, data: ImageSet, trust: float) -> np.ndarray[Any, Any]:
    """What a copy of the network, trusted so, predicts at both budgets, one after the other."""
    other = copy.deepcopy(net)
    choose_trust(other, data, BUDGETS, [trust])
    pixels = preprocess(data.images, net.spec.image)
    answers = []
    with torch.no_grad():
        for budget in BUDGETS:
            told = budget if net.spec.gate.budget_input else None
            logits = other.gate_logits(pixels, told)
            lean = lean_to(logits, torch.tensor(net.options.costs), net.lean_weights, budget)
            path = (logits + lean * net.lean_weights).argmax(-1)
            answers.append(net(pixels, decisions=path).logits.argmax(1).numpy())
    return np.stack(answers)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_the_share_is_the_one_whose_predictions_are_right(
    make_net: Make, gate: dict[str, Any], wanted: float
) -> None:
    net = network(make_net, gate)
    data = pictures(net)
    right, other = (leaned_answers(net, data, trust) for trust in (wanted, 1 - wanted))
    # Only images on which the two differ, and the labels of the one.
    rows = np.flatnonzero((right != other).any(0) & (right[0] == right[1]))
    assert len(rows) > 1
    few = dataclasses.replace(data, images=data.images[rows], labels=right[0][rows])
    full = copy.deepcopy(net)
    assert choose_trust(net, few, BUDGETS, [0.0, 1.0]) == wanted
    images = torch.randn(16, 3, 8, 8)
    told = 0.02 if gate.get("budget_input") else None
    differences = said(net, images, told).std(0).max()
    assert (differences < 1e-5) if not wanted else (differences > 1e-3)
    assert net.training == full.training


def test_a_run_chooses_once_its_gates_are_trained(
    tiny_recipe: Callable[..., Recipe], run: Any
) -> None:
    tree: dict[str, Any] = {
        "options": OPTIONS,
        "gate": {"width": 6, "block_bias": True},
        "gates": {"epochs": 1, "trusts": [0.0, 0.5]},
        "joint": {"epochs": 1, "paths": "shared", "gate_lr": 0, "target": 0.02, "norm_images": 24},
    }
    done = run(tiny_recipe(**tree), "trusted")
    assert done.epochs[-1]["trust"] in (0.0, 0.5)
    tree["gates"]["trusts"] = []
    assert "trust" not in run(tiny_recipe(**tree), "plain").epochs[-1]
