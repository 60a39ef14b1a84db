"""Weights of every option learn in drawn allocations before gates are trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fracskip.config import Recipe, SupernetStage
from fracskip.dynamic import DynamicNetwork
from fracskip.report.reading import load_record
from fracskip.training.supernet import draw_allocation

Make = Callable[..., Recipe]
Net = Callable[..., DynamicNetwork]
Go = Callable[..., Any]  # conftest.Run


def paths(
    net: DynamicNetwork, share: float, skip_rate: float, count: int = 400, **config: float
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    stage = SupernetStage(skip_rate=skip_rate, **config)
    return torch.tensor([draw_allocation(net, share, stage, draw) for _ in range(count)])


@pytest.fixture
def net(make_net: Net) -> DynamicNetwork:
    """Eight gated blocks, of which the third and the sixth are projections."""
    return make_net(model={"name": "resnet20"}, options=("skip", "2", "3", "4", "6", "8"))


def test_levels_run_from_the_cheapest_executed_option_to_the_dearest(net: DynamicNetwork) -> None:
    low, middle, high = (paths(net, level, 0.0).float() for level in (0.0, 0.5, 1.0))
    assert low.min() == 1  # nothing is skipped
    assert high.max() == 5
    assert low.mean() < 1.4 < 2.7 < middle.mean() < 3.3 < 4.6 < high.mean()
    # Around a level, blocks differ.
    assert ((middle == 2).any(1) & (middle == 4).any(1)).float().mean() > 0.5


def test_no_more_than_the_rate_is_skipped_and_never_a_projection(net: DynamicNetwork) -> None:
    drawn = paths(net, 0.5, 0.4)
    skipped = (drawn == 0).float().mean(0)
    projections = [
        index
        for index, (_, block) in enumerate(net.backbone.named_blocks()[1:])
        if block.projection is not None
    ]
    assert projections == [2, 5]
    for block, share in enumerate(skipped.tolist()):
        assert share == 0 if block in projections else 0.12 < share < 0.28, block


def test_so_many_paths_as_asked_execute_one_option_everywhere(net: DynamicNetwork) -> None:
    drawn = paths(net, 0.5, 0.4, uniform_rate=0.25)
    uniform = drawn[(drawn == drawn[:, :1]).all(1)]
    assert 0.2 < len(uniform) / len(drawn) < 0.3
    assert (uniform == 3).all()  # the middle one of five
    ends = [paths(net, share, 0.4, count=1, uniform_rate=1.0) for share in (0.0, 1.0)]
    assert [end.unique().tolist() for end in ends] == [[1], [5]]


def test_focus_draws_cheap_options_more_often(net: DynamicNetwork) -> None:
    plain, focused = (paths(net, 0.5, 0.0, low_focus=focus).float() for focus in (1.0, 2.0))
    assert focused.mean() < plain.mean() - 1


def test_without_skipping_all_options_are_executed(make_net: Net) -> None:
    net = make_net(options=("2", "4", "8"))
    drawn = paths(net, 0.0, 0.5)
    assert drawn.min() == 0
    assert drawn.float().mean() < 0.4


def test_weights_learn_and_gates_wait(tiny_recipe: Make, run: Go) -> None:
    tree = {
        "options": ["skip", 2, 4, 8],
        "gate": {"width": 6, "block_bias": True},
        "gates": {"epochs": 1, "option": "8", "label": "sensitivity"},
        "joint": {"epochs": 0, "target": 0.03, "norm_images": 24},
    }
    done = run(tiny_recipe(**tree, supernet={"epochs": 3, "distillation": 0.5}), "with")
    plain = run(tiny_recipe(**tree), "without")
    assert done.stages == ["backbone", "supernet", "gates"]
    assert plain.stages == ["backbone", "gates"]
    assert [e.stage for e in load_record(done.folder / "run.json").epochs][2:4] == ["supernet"] * 2
    supernet = [event for event in done.epochs if event["stage"] == "supernet"]
    assert supernet[-1]["loss"] < supernet[0]["loss"]
    assert len({event["cp"] for event in supernet}) == 3
    assert done.epochs[1]["loss"] == plain.epochs[1]["loss"]  # the backbone's
    states = [load_file(each.folder / "state.safetensors") for each in (plain, done)]
    moved = [n for n in states[0] if n in states[1] and not torch.equal(states[0][n], states[1][n])]
    assert "net.backbone.layer2.0.conv1.weight" in moved
    assert "teacher.conv1.weight" in states[1]


def test_statistics_along_given_paths(make_net: Net) -> None:
    first, second = make_net(), make_net()
    batches = [torch.randn(64, 3, 8, 8), torch.randn(48, 3, 8, 8)]
    with torch.no_grad():
        chosen = [first(images).decisions for images in batches]
    first.reestimate(batches, fewest=1)
    # The gates were asked on other statistics, so take what they say now.
    with torch.no_grad():
        chosen = [first(images).decisions for images in batches]
    second.reestimate(batches, fewest=1, decisions=chosen)
    one, other = first.state_dict(), second.state_dict()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    third = make_net()
    third.reestimate(batches, fewest=1, decisions=[third.forced("full", len(b)) for b in batches])
    untouched = [name for name in one if name.endswith("option_mean")]
    assert untouched
    before = make_net().state_dict()
    assert all(torch.equal(third.state_dict()[name], before[name]) for name in untouched)


def test_a_static_network_has_statistics_to_estimate_too(make_net: Net) -> None:
    net = make_net(options=("4",))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.reestimate([torch.randn(64, 3, 8, 8) * 2])
    after = net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("mean" in name or "var" in name for name in moved)
