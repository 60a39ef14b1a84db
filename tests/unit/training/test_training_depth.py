"""Stochastic depth: batches that leave out some of the backbone's blocks."""

from __future__ import annotations

import pytest
import torch

from fracskip.config import recipe_from_dict
from fracskip.models import CifarResNet
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
