"""The objective 'balance', the teacher and the reward on decisions that tell of their image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fracskip import checkpoint
from fracskip.config import Recipe
from fracskip.data import load_split
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import ConfigError
from fracskip.training.objective import (
    LARGEST_MULTIPLIER,
    LARGEST_PRICE,
    LARGEST_SUBSIDY,
    CostBalance,
    CostPrice,
    allocation_at,
    decision_information,
    distillation,
    sensitivity,
)

Make = Callable[..., Recipe]
Go = Callable[..., Any]
BALANCE = {
    "quant": {"stream": "int8"},
    "options": ["skip", 8, "full"],
    "gate": {"width": 6, "block_bias": True, "standardise": True},
    "gates": {"epochs": 0, "option": "8"},
    "joint": {
        "target": 0.03,
        "objective": "balance",
        "price_rate": 0.05,
        "distillation": 0.5,
        "diversity": 0.1,
    },
}


# -- balance --------------------------------------------------------------------------------------


def test_the_multiplier_answers_the_error_at_once() -> None:
    balance = CostBalance(rate=0.1, multiplier_rate=0.3, price=0.2)
    cost = torch.tensor([0.1, 0.2], requires_grad=True)
    loss = balance.penalty(cost, target=0.1)
    assert balance.multiplier == pytest.approx(0.3 * 0.5)
    assert loss.item() == pytest.approx(0.2 * 1.5)
    loss.backward()
    assert cost.grad is not None
    assert cost.grad.tolist() == pytest.approx([0.2 / 2 / 0.1] * 2)
    balance.penalty(torch.tensor([0.05]), target=0.1)
    assert balance.multiplier == pytest.approx(0, abs=1e-6)


def test_the_price_goes_where_the_loss_has_no_slope_and_stays_there() -> None:
    """Loss = -0.3 · executed, cost / target = 2 · executed: the price of balance is 0.15."""
    balance = CostBalance(rate=0.1)
    prices = []
    for _ in range(100):
        balance.follow(slope=0.3 * 0.7 - balance.price * 2 * 0.7, cost_slope=-2 * 0.7)
        prices.append(balance.price)
    assert all(a < b for a, b in itertools.pairwise(prices))  # from below, never past it
    assert prices[-1] == pytest.approx(0.15, abs=1e-4)


def test_multiplier_and_price_are_bounded() -> None:
    balance = CostBalance(rate=1.0)
    for _ in range(400):
        balance.penalty(torch.tensor([1.0]), target=0.1)
        balance.follow(slope=50.0, cost_slope=0.0)
    assert (balance.multiplier, balance.price) == (LARGEST_MULTIPLIER, LARGEST_PRICE)
    for _ in range(800):
        balance.penalty(torch.tensor([0.0]), target=0.1)
        balance.follow(slope=-50.0, cost_slope=0.0)
    assert (balance.multiplier, balance.price) == (-LARGEST_MULTIPLIER, -LARGEST_SUBSIDY)


def test_a_price_that_follows_the_cost_is_bounded_too() -> None:
    price = CostPrice(rate=0.1)
    for _ in range(100):
        price.penalty(torch.tensor([1.0]), target=0.1)
    assert price.integral == LARGEST_PRICE


# -- teacher and information ----------------------------------------------------------------------


def test_distillation_by_hand() -> None:
    ours, theirs = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    # At temperature 2 the teacher says (3/4, 1/4), the student (1/2, 1/2).
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert distillation(ours, theirs, 2.0).item() == pytest.approx(wanted, rel=1e-5)
    assert distillation(theirs, theirs, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_information_by_hand() -> None:
    certain, open_ = [40.0, -40.0], [0.0, 0.0]
    other = certain[::-1]
    scores = torch.tensor(
        [  # blocks: images differ; all alike and certain; all alike and open
            [certain, certain, open_],
            [other, certain, open_],
        ]
    )
    assert decision_information(scores).item() == pytest.approx(math.log(2) / 3, rel=1e-5)
    scores.requires_grad_()
    decision_information(scores).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_harm_by_hand() -> None:
    before = torch.tensor([[math.log(3), 0.0], [1.0, 2.0]])
    after = torch.tensor([[0.0, 0.0], [11.0, 12.0]])  # a shift of all logits changes nothing
    wanted = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0]
    assert sensitivity(after, before).tolist() == pytest.approx(wanted, abs=1e-6)


def test_gates_learn_what_harms(tiny_recipe: Make, run: Go) -> None:
    """A block whose branch is all but zero is harmless to skip, a projection is not."""
    recipe = tiny_recipe(
        model={"name": "resnet14"},
        options=["skip", 8, "full"],
        gate={"width": 6, "block_bias": True, "standardise": True},
        gates={"epochs": 40, "option": "8", "label": "sensitivity", "lr": 0.03},
        joint={"epochs": 0},
        backbone={"epochs": 8},
    )
    done = run(recipe)
    gates = [event for event in done.epochs if event["stage"] == "gates"]
    assert gates[-1]["loss"] < 0.5 * gates[0]["loss"]
    net = checkpoint.load(done.folder / "model.safetensors")
    images = preprocess(
        load_split(recipe.data.name, "test", recipe.data.image).images, net.spec.image
    )
    with torch.inference_mode():
        path = [1] * len(net.blocks)
        inputs, predicted = net.execute_allocation(images, path)
        logits = -net.gate_scores_on(inputs)
        margins = (logits[:, :, 1] - logits[:, :, 0]).mean(0)
        found = [
            sensitivity(net.execute_from(x, at, 0, path), predicted).log().mean()
            for at, x in enumerate(inputs)
        ]
    order = torch.stack(found).argsort()
    assert margins[order[-1]] > margins[order[0]] + 1  # most and least harmful block
    assert (logits[:, :, 1] > logits[:, :, 2] + 1).all()  # 'full' stays rare


def test_an_allocation_meets_its_target() -> None:
    costs, ranks = torch.tensor([0.0, 0.25, 1.0]), torch.tensor([0.0, 0.5, 1.0])
    logits = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.5, 0.2]])
    assert allocation_at(-logits, costs, ranks, 0.0) == [0, 0, 0, 0]
    assert allocation_at(-logits, costs, ranks, 1.0) == [2, 2, 2, 2]
    assert allocation_at(-logits, costs, ranks, 0.375) == [1, 0, 2, 1]  # as they are
    assert allocation_at(-logits, costs, ranks, 0.26) == [0, 0, 2, 0]  # 0.25; with one more 0.3125


def test_gates_learn_sensitivity_in_their_own_allocation(tiny_recipe: Make, run: Go) -> None:
    """It approaches the target's cost, and the margins are those in it."""
    recipe = tiny_recipe(
        model={"name": "resnet14"},
        options=["skip", 8, "full"],
        gate={"width": 6, "block_bias": True, "standardise": True},
        gates={
            "epochs": 40,
            "option": "8",
            "label": "sensitivity",
            "allocation": "chosen",
            "lr": 0.03,
        },
        joint={"epochs": 0, "target": 0.04, "norm_images": 0},
        backbone={"epochs": 8},
    )
    done = run(recipe)
    gates = [event for event in done.epochs if event["stage"] == "gates"]
    assert len(gates) == 40
    allocation = gates[-1]["allocation"]
    assert sorted(allocation) == [0, 0, 1, 1, 1]  # 0.04 is 3.2 blocks of five at 8 bits
    net = checkpoint.load(done.folder / "model.safetensors")
    images = preprocess(
        load_split(recipe.data.name, "test", recipe.data.image).images, net.spec.image
    )
    with torch.inference_mode():
        inputs, predicted = net.execute_allocation(images, allocation)
        logits = -net.gate_scores_on(inputs)
        margins = (logits[:, :, 1] - logits[:, :, 0]).mean(0)
        found = []
        for at, x in enumerate(inputs):
            changed = net.execute_from(x, at, 1 - allocation[at], allocation)
            less, more = (changed, predicted) if allocation[at] else (predicted, changed)
            found.append(sensitivity(less, more).log().mean())
    order = torch.stack(found).argsort()
    assert margins[order[-1]] > margins[order[0]] + 0.5


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_with_an_int8_stream_holds_its_target(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe(**BALANCE))
    joint = [event for event in done.epochs if event["stage"] == "joint"]
    assert not [event for event in done.epochs if event["stage"] == "gates"]
    assert all({"price", "multiplier"} <= event.keys() for event in joint)
    assert joint[0]["cp"] < 0.2  # gates begin at 8 bits, not in full
    assert done.summary["test"]["cp"] == pytest.approx(0.03, abs=0.02)
    state = load_file(done.folder / "state.safetensors")
    assert state["net.stream.steps"].shape == (3,)
    assert "teacher.conv1.weight" in state


def test_a_batch_shares_the_path_of_its_first_image(
    tiny_recipe: Make, run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, list[int]]] = []
    forward = DynamicNetwork.forward

    def watched(self: DynamicNetwork, images: torch.Tensor, **options: Any) -> Any:
        if self.training and options.get("decisions") is not None:
            with torch.no_grad():
                first = forward(self, images[:1]).decisions
            seen.append((options["decisions"], first[0].tolist()))
        return forward(self, images, **options)

    monkeypatch.setattr(DynamicNetwork, "forward", watched)
    tree = {
        **BALANCE,
        "gates": {"epochs": 2, "option": "8", "label": "sensitivity"},
        "joint": {"epochs": 2, "target": 0.04, "allocation": "batch", "gate_lr": 0},
    }
    done = run(tiny_recipe(**tree))
    joint = [event for event in done.epochs if event["stage"] == "joint"]
    assert len(seen) == 3 * len(joint)  # three steps an epoch
    assert all((decisions == torch.tensor(first)).all() for decisions, first in seen)
    assert done.summary["test"]["cp"] == pytest.approx(0.04, abs=0.02)
    before = run(tiny_recipe(**{**tree, "joint": {"epochs": 0, "target": 0.04}}), "before")
    states = [load_file(each.folder / "state.safetensors") for each in (before, done)]
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert "net.backbone.layer1.0.conv1.weight" in moved
    assert not any(name.startswith("net.gate.") for name in moved)


def test_the_teacher_is_the_backbone_before_it_was_trained_on(tiny_recipe: Make, run: Go) -> None:
    done = run(tiny_recipe(**BALANCE))
    state = load_file(done.folder / "state.safetensors")
    assert not torch.equal(state["teacher.conv1.weight"], state["net.backbone.conv1.weight"])
    assert not [name for name in state if name.startswith("teacher.") and "quantiser" in name]


def test_gates_without_a_learning_rate_stay_while_weights_learn(tiny_recipe: Make, run: Go) -> None:
    still = {**BALANCE, "joint": {**BALANCE["joint"], "gate_lr": 0, "exploration": 0}}
    before = run(tiny_recipe(**{**still, "joint": {**still["joint"], "epochs": 0}}), "before")
    after = run(tiny_recipe(**still), "after")
    one = load_file(before.folder / "state.safetensors")
    other = load_file(after.folder / "state.safetensors")
    gates = [name for name in one if name.startswith("net.gate.")]
    assert len(gates) > 5
    assert all(torch.equal(one[name], other[name]) for name in gates)
    assert not torch.equal(one["net.stream.steps"], other["net.stream.steps"])
    assert not torch.equal(one["net.backbone.conv1.weight"], other["net.backbone.conv1.weight"])
    joint = [event for event in after.epochs if event["stage"] == "joint"]
    assert [event["price"] for event in joint] == [0.0] * len(joint)
    assert joint[-1]["cp"] == pytest.approx(0.03, abs=0.015)  # held by the multiplier alone


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"quant": {"stream": "int8", "scheme": "paper"}}, "stream 'int8' needs scheme 'lsq'"),
        ({"quant": {"stream": "int4"}}, "quant.stream"),
        ({"gate": {"kind": "feedforward", "block_bias": True}}, "block_bias is for 'recurrent'"),
        ({"gates": {"label": "harmless"}}, "gates.label"),
        ({"joint": {"allocation": "batch"}}, "teaches the gates nothing: set gate_lr to 0"),
        (
            {"joint": {"aim": "budgets", "budgets": [0.1, 0.2]}},
            "aim 'budgets' needs allocation 'batch'",
        ),
        (
            {"joint": {"allocation": "batch", "gate_lr": 0, "aim": "budgets", "budgets": [0.1]}},
            "two budgets at least",
        ),
        ({"gates": {"option": "5"}}, "option '5' is not in this set"),
        ({"joint": {"objective": "balanced"}}, "joint.objective"),
        ({"joint": {"distillation": 1.5}}, "joint.distillation"),
        ({"joint": {"diversity": -1}}, "joint.diversity"),
    ],
)
def test_impossible_recipes_are_refused(tiny_recipe: Make, tree: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_recipe(**tree)


def test_the_papers_scheme_keeps_a_float_stream(tiny_recipe: Make) -> None:
    assert tiny_recipe(quant={"scheme": "paper"}).quant.stream == "float"
    assert tiny_recipe(gates={"option": 4}).start_option == 1
    assert tiny_recipe().start_option == 2
