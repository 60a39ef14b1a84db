"""Stochastic depth: batches that leave out some of the backbone's blocks."""

from __future__ import annotations

import pytest
import torch

from fracskip.config import recipe_from_dict
from fracskip.errors import ConfigError
from fracskip.models import CifarResNet
from fracskip.training.depth import draw_by_harm, elimination_order, skippable
from fracskip.training.stages import BackboneTraining, Place


def training(rate: float, blocks_per_stage: int = 4) -> BackboneTraining:
    recipe = recipe_from_dict(
        {"name": "x", "options": ["full"], "backbone": {"epochs": 1, "stochastic_depth": rate}}
    )
    return BackboneTraining(CifarResNet(blocks_per_stage), recipe, torch.device("cpu"), False)


def drawn(stage: BackboneTraining, steps: int) -> list[frozenset[int]]:
    return [stage._skipped(Place(0, step, 0.0)) for step in range(steps)]


def test_without_a_rate_nothing_is_skipped() -> None:
    assert set(drawn(training(0.0), 50)) == {frozenset()}


def test_the_rate_rises_from_the_first_block_to_the_last() -> None:
    steps, rate = 2000, 0.6
    draws = drawn(training(rate), steps)
    shares = [sum(block in skipped for skipped in draws) / steps for block in range(12)]
    assert shares[0] == 0
    assert [shares[block] for block in (4, 8)] == [0, 0]  # projections
    for block in (1, 2, 3, 5, 6, 7, 9, 10, 11):
        assert shares[block] == pytest.approx(rate * block / 11, abs=0.04)


def test_a_step_draws_the_same_blocks_again() -> None:
    assert drawn(training(0.5), 20) == drawn(training(0.5), 20)
    assert len(set(drawn(training(0.5), 20))) > 5


def test_skipped_blocks_hand_on_their_input_and_get_no_gradient() -> None:
    net = CifarResNet(2)
    images = torch.randn(3, 3, 8, 8)
    net(images, {1, 5}).sum().backward()
    blocks = [block for _, block in net.named_blocks()]
    assert [block.conv1.weight.grad is None for block in blocks] == [
        index in (1, 5) for index in range(6)
    ]
    net.eval()
    x = net.stem(images)
    for index in (0, 2, 3, 4):
        x = blocks[index](x)
    torch.testing.assert_close(net(images, {1, 5}), net.head(x))


def test_a_step_trains_what_is_left() -> None:
    stage = training(0.9)
    place = next(p for step in range(50) if stage._skipped(p := Place(0, step, 0.0)))
    before = {name: value.clone() for name, value in stage.net.named_parameters()}
    result = stage.step(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), place)
    assert result.images == 4
    skipped = stage._skipped(place)
    for index, (name, block) in enumerate(stage.net.named_blocks()):
        moved = not torch.equal(block.conv2.weight, before[f"{name}.conv2.weight"])
        assert moved == (index not in skipped)


# -- by harm --------------------------------------------------------------------------------------


def test_neither_the_first_block_nor_a_projection_is_skippable() -> None:
    assert skippable(CifarResNet(3)) == [1, 2, 4, 5, 7, 8]


def test_blocks_go_in_order_up_to_a_share_that_is_drawn() -> None:
    order, rate, steps = list(range(100, 140)), 0.5, 4000
    draw = torch.Generator().manual_seed(0)
    draws = [draw_by_harm(order, rate, draw) for _ in range(steps)]
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
    net = CifarResNet(3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))) for _ in range(2)]
    assert sorted(elimination_order(net, batches)) == skippable(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_order_is_greedy() -> None:
    torch.manual_seed(1)
    net = CifarResNet(2)
    batches = [(torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,)))]

    def loss(skipped: set[int]) -> float:
        twin = CifarResNet(2).train()
        twin.load_state_dict(net.state_dict())
        (images, labels), *_ = batches
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(twin(images, skipped), labels))

    remaining, wanted = [1, 3, 5], []
    while remaining:
        losses = {block: loss({*wanted, block}) for block in remaining}
        wanted.append(min(losses, key=losses.__getitem__))
        remaining.remove(wanted[-1])
    assert elimination_order(net, batches) == wanted


def test_an_order_survives_a_resumption() -> None:
    recipe = recipe_from_dict(
        {
            "name": "x",
            "options": ["full"],
            "backbone": {
                "load": "x.safetensors",
                "epochs": 1,
                "stochastic_depth": 0.6,
                "depth_order": "harm",
            },
        }
    )
    device, order = torch.device("cpu"), [7, 1, 5, 2, 4, 8]
    first = BackboneTraining(CifarResNet(3), recipe, device, False, order)
    again = BackboneTraining(CifarResNet(3), recipe, device, False)
    again.load_state(first.state())
    assert drawn(first, 50) == drawn(again, 50)
    assert len({len(skipped) for skipped in drawn(first, 50)}) > 2


def test_harm_needs_a_trained_backbone() -> None:
    with pytest.raises(ConfigError, match="depth_order 'harm' needs a trained backbone"):
        recipe_from_dict({"name": "x", "backbone": {"epochs": 1, "depth_order": "harm"}})
