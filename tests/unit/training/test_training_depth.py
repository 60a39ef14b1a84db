"""Stochastic depth: batches that leave out some of the backbone's blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.support.residual_networks import (
    Bottleneck,
    Inverted,
    Loose,
    Network,
    Patchwise,
    PreActivation,
    Twice,
)
from torch import nn

from fracskip.config import Recipe, recipe_from_dict
from fracskip.errors import ConfigError
from fracskip.models import create_model
from fracskip.models.skippable import SkippableNetwork
from fracskip.training.depth import draw_by_sensitivity, elimination_order
from fracskip.training.stages import BackboneTraining, StepIndex

IMAGE = (3, 8, 8)


def recipe_of(**backbone: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "x",
            "options": ["full"],
            "data": {"image": {"size": IMAGE[1:]}},
            "backbone": {"epochs": 1, **backbone},
        }
    )


def training(
    rate: float, net: nn.Module | None = None, order: Sequence[int] = (), **backbone: Any
) -> BackboneTraining:
    recipe = recipe_of(stochastic_depth=rate, **backbone)
    net = create_model("resnet26") if net is None else net
    return BackboneTraining(net, recipe, torch.device("cpu"), False, order)


def drawn(stage: BackboneTraining, steps: int) -> list[frozenset[int]]:
    return [skipped(stage, StepIndex(0, step, 0.0)) for step in range(steps)]


def skipped(stage: BackboneTraining, place: StepIndex) -> frozenset[int]:
    assert stage._blocks is not None
    return stage._skipped(stage._blocks, place)


def test_the_rate_rises_from_the_first_block_to_the_last() -> None:
    steps, rate = 2000, 0.6
    draws = drawn(training(rate), steps)
    shares = [sum(block in skipped for skipped in draws) / steps for block in range(12)]
    assert shares[0] == 0
    assert [shares[block] for block in (4, 8)] == [0, 0]  # projections
    for block in (1, 2, 3, 5, 6, 7, 9, 10, 11):
        assert shares[block] == pytest.approx(rate * block / 11, abs=0.04)


def test_a_step_draws_the_same_blocks_again() -> None:
    first = drawn(training(0.5), 20)
    assert drawn(training(0.5), 20) == first
    assert len(set(first)) > 5


def test_skipped_blocks_hand_on_their_input_and_get_no_gradient() -> None:
    net = create_model("resnet14")
    images = torch.randn(3, *IMAGE)
    SkippableNetwork(net, IMAGE)(images, {1, 5}).sum().backward()
    blocks = [block for _, block in net.named_blocks()]
    assert [block.conv1.weight.grad is None for block in blocks] == [
        index in (1, 5) for index in range(6)
    ]
    net.eval()
    x = net.stem(images)
    for index in (0, 2, 3, 4):
        x = blocks[index](x)
    torch.testing.assert_close(SkippableNetwork(net, IMAGE)(images, {1, 5}), net.head(x))


STAGED = {1: "blocks.1", 3: "blocks.4", 4: "blocks.5"}
# What can be left out, by number: all but the first block and those without an identity.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[int, str]]] = {
    "resnet20": (
        lambda: create_model("resnet20"),
        {3 * stage + place: f"layer{stage + 1}.{place}" for stage in range(3) for place in (1, 2)},
    ),
    "bottleneck": (lambda: Network(Bottleneck, last=2), STAGED),
    "pre-activation": (lambda: Network(PreActivation, last=2), STAGED),
    "one without a shortcut": (lambda: Network(Inverted, last=2), STAGED),
    "patchwise": (lambda: Network(Patchwise, last=2), {2: "blocks.2", **STAGED}),
    "two sums in a module": (
        lambda: Network(Twice),
        {
            2 * index + second: f"blocks.{place}.{('first', 'second')[second]}"
            for index, place in enumerate((0, 1, 2, 4))
            for second in (0, 1)
            if index or second
        },
    ),
    "sums in its own code": (Loose, {1: "two"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_s_step_trains_what_is_left(name: str) -> None:
    make, names = NETWORKS[name]
    torch.manual_seed(0)
    net = make().train()
    twin = copy.deepcopy(net)
    stage = training(0.9, net)
    assert stage._blocks is not None
    assert stage._blocks.skippable == sorted(names)
    assert net.training
    images = torch.randn(4, *IMAGE)
    # With nothing left out it is the network, batch statistics and dropout included.
    torch.manual_seed(1)
    wanted = twin(images)
    torch.manual_seed(1)
    torch.testing.assert_close(stage._blocks(images), wanted)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value)
    place = next(p for step in range(50) if skipped(stage, p := StepIndex(0, step, 0.0)))
    before = {key: value.clone() for key, value in net.named_parameters()}
    assert stage.step(images, torch.tensor([0, 1, 2, 3]), place).images == 4
    left_out = tuple(f"{names[index]}." for index in skipped(stage, place))
    for key, value in net.named_parameters():
        if key.endswith("weight"):
            assert torch.equal(value, before[key]) == key.startswith(left_out), key


def test_a_network_that_can_do_without_no_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no block of CifarResNet can be left out.*leave backbo"):
        training(0.5, create_model("resnet8"))


# -- by sensitivity ------------------------------------------------------------------------------


def test_blocks_go_in_order_up_to_a_share_that_is_drawn() -> None:
    order, rate, steps = list(range(100, 140)), 0.5, 4000
    draw = torch.Generator().manual_seed(0)
    draws = [draw_by_sensitivity(order, rate, draw) for _ in range(steps)]
    sizes = torch.tensor([len(out) for out in draws]) / len(order)
    assert float(sizes.mean()) == pytest.approx(rate / 2, abs=0.02)
    assert float(sizes.max()) == pytest.approx(rate, abs=0.15)
    # A block at place p is left out when the share drawn is above p: 1 - p / rate of the time.
    for place in (0.2125, 0.4125):
        share = sum(order[int(place * 40)] in out for out in draws) / steps
        assert share == pytest.approx(1 - place / rate, abs=0.06)
    assert not any(order[-1] in out for out in draws)


def test_ordering_leaves_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    net = create_model("resnet20")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))) for _ in range(2)]
    assert sorted(elimination_order(net, recipe_of(), batches)) == sorted(NETWORKS["resnet20"][1])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_order_is_greedy() -> None:
    torch.manual_seed(1)
    net = create_model("resnet14")
    batches = [(torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,)))]

    blocks = SkippableNetwork(copy.deepcopy(net), IMAGE)  # in training: statistics of the batch

    def loss(skipped: set[int]) -> float:
        (images, labels), *_ = batches
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(blocks(images, skipped), labels))

    remaining, wanted = [1, 3, 5], []
    while remaining:
        losses = {block: loss({*wanted, block}) for block in remaining}
        wanted.append(min(losses, key=losses.__getitem__))
        remaining.remove(wanted[-1])
    assert elimination_order(net, recipe_of(), batches) == wanted


def test_an_order_survives_a_resumption() -> None:
    elastic = {"load": "x.safetensors", "depth_sampling": "elastic"}
    first = training(0.6, create_model("resnet20"), [7, 1, 5, 2, 4, 8], **elastic)
    again = training(0.6, create_model("resnet20"), **elastic)
    again.load_state(first.state())
    assert drawn(first, 50) == drawn(again, 50)
    assert len({len(skipped) for skipped in drawn(first, 50)}) > 2


def test_harm_needs_a_trained_backbone() -> None:
    with pytest.raises(ConfigError, match="depth_sampling 'elastic' needs a trained backbone"):
        recipe_from_dict({"name": "x", "backbone": {"epochs": 1, "depth_sampling": "elastic"}})
