"""What is found in a network: its blocks, their shortcuts, and what can't be one."""

from __future__ import annotations

import pytest
import torch
from tests.support.residual_networks import (
    KINDS,
    Bottleneck,
    Inverted,
    Loose,
    Network,
    Patchwise,
    PreActivation,
    Same,
    Twice,
    conv,
    make_images,
    make_plain,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fracskip.errors import ConfigError
from fracskip.models import export
from fracskip.models.export import register_adapter
from fracskip.models.steps import Steps
from fracskip.models.structure import find_blocks, never_negative
from fracskip.models.tracing import trace

IMAGE = (3, 12, 10)


@pytest.mark.parametrize(
    ("kind", "skippable", "projected"),
    [
        (Bottleneck, [True, True, True], [False, True, False]),
        (PreActivation, [True, True, True], [False, True, False]),
        (Inverted, [True, False, True], [False, False, False]),
        (Patchwise, [True, True, True], [False, False, False]),
        (Same, [True, True, True], [False, True, False]),
    ],
)
def test_blocks_are_found_by_what_is_added(
    kind: type[nn.Module], skippable: list[bool], projected: list[bool]
) -> None:
    """The first is left out: it gives the gates something to see."""
    found = find_blocks(make_plain(kind), IMAGE)
    assert [block.name for block in found.blocks] == ["blocks.1", "blocks.2", "blocks.4"]
    assert [block.can_be_skipped for block in found.blocks] == skippable
    assert [block.shortcut is not None for block in found.blocks] == projected
    assert found.refused == {"blocks.0": "the first block is always executed"}
    assert found.classes == 5
    assert [found.channels(block) for block in found.blocks][:2] == [8, 8]


def test_the_relu_after_the_sum_is_the_blocks_own() -> None:
    found = find_blocks(make_plain(Bottleneck), IMAGE)
    assert [len(block.after) for block in found.blocks] == [1, 1, 1]
    assert all(block.output is block.after[0] for block in found.blocks)
    assert not any(b.after for b in find_blocks(make_plain(PreActivation), IMAGE).blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_what_torch_counts(kind: type[nn.Module]) -> None:
    net = make_plain(kind)
    found = find_blocks(net, IMAGE)
    with FlopCounterMode(display=False) as counter:
        net(make_images(1))
    graph = found.graph
    assert 2 * graph.macs(graph.data) == counter.get_total_flops()
    inside = sum(graph.macs(block.nodes) for block in found.blocks)
    assert 0 < inside < graph.macs(graph.data)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_compute_what_the_network_does(kind: type[nn.Module]) -> None:
    net, images = make_plain(kind), make_images(5)
    graph = trace(net, IMAGE)
    start, logits = graph[0], graph[graph.output]
    for at in graph.cuts[1:-1]:
        node = graph.data[at]
        before = Steps(net, graph, [], [start], node)
        after = Steps(net, graph, graph.data[at + 1 :], [node], logits)
        torch.testing.assert_close(after(before(images)), net(images), rtol=0, atol=0)
    groups = [(images[:2],), (images[2:],)]
    found = Steps(net, graph, [], [start], logits).run(groups)
    torch.testing.assert_close(torch.cat(found), net(images))


def test_the_chain_has_every_value_that_all_flows_through() -> None:
    class Diamond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x.mean((2, 3)) + 1
            left, right = a * 2, a * 3
            b = left - right
            late = b.sin()
            return late.cos() + b.exp()

    graph = trace(Diamond().eval(), IMAGE)
    names = [graph.data[at].name for at in graph.cuts]
    assert names == ["images", "mean", "add", "sub", "add_1"]


class Two(nn.Module):
    """Two ways of equal rank: neither is a shortcut."""

    def __init__(self, *_: int) -> None:
        super().__init__()
        self.left, self.right = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x)) + F.relu(self.right(x))


class Chain(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


@pytest.mark.parametrize("kind", [Two, Chain])
def test_a_network_without_residual_blocks_has_nothing_for_gates(kind: type[nn.Module]) -> None:
    net = nn.Sequential(conv(3, 8), kind(8, 8, 1), kind(8, 8, 1), nn.Flatten(), nn.Linear(960, 5))
    found = find_blocks(net.eval(), IMAGE)
    assert (found.blocks, found.first, found.refused, found.classes) == ((), None, {}, 5)
    with pytest.raises(ConfigError, match=r"Net has no residual blocks: .* blocks=.*quantize"):
        found.require_blocks("Net")


def test_named_blocks_get_the_widths_alone() -> None:
    net = make_plain(Chain)
    found = find_blocks(net, IMAGE, ["blocks.1", "blocks.4"])
    assert [block.name for block in found.blocks] == ["blocks.1", "blocks.4"]
    assert not any(block.can_be_skipped for block in found.blocks)
    by_kind = find_blocks(net, IMAGE, lambda name, module: isinstance(module, Chain))
    assert [block.name for block in by_kind.blocks] == [f"blocks.{i}" for i in (0, 1, 2, 4)]


def test_named_blocks_keep_their_shortcuts() -> None:
    found = find_blocks(make_plain(Bottleneck), IMAGE, ["blocks.0", "blocks.2"])
    assert [block.name for block in found.blocks] == ["blocks.0", "blocks.2"]
    assert all(block.can_be_skipped for block in found.blocks)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blocks.9"], "'blocks.9' is no module of Network"),
        ([], "no block is named"),
        (["blocks.1.conv1"], "can't be a block|can't be gated"),
        (["pool"], "'pool' can't be gated|'pool' can't be a block"),
        (["stem"], "'stem' can't be gated: it sees the images themselves"),
    ],
)
def test_what_is_no_block_is_named(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_blocks(make_plain(Inverted if names == ["pool"] else Bottleneck), IMAGE, names)


def test_layers_with_weights_are_not_shared() -> None:
    net = make_plain(Bottleneck)
    net.blocks[4] = net.blocks[3] = nn.Identity()
    net.blocks[2] = net.blocks[1]
    net.fc = nn.Linear(8, 5)
    with pytest.raises(ConfigError, match=r"conv1.* is executed 2 times in one pass"):
        find_blocks(net, IMAGE)


class Choosy(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0 else x


def test_control_flow_by_values_needs_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ADAPTERS", {})
    net = make_plain(Choosy)
    with pytest.raises(ConfigError, match=r"Network cannot be traced on .*register_adapter"):
        find_blocks(net, IMAGE)
    register_adapter(Choosy, Bottleneck.forward)
    assert len(find_blocks(net, IMAGE).blocks) == 3


class Transposed(nn.Module):
    """Its convolution is none that options execute."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


def test_a_layer_that_computes_something_else_keeps_its_block_as_it_is() -> None:
    net = make_plain(Bottleneck)
    net.blocks[1].conv2 = Transposed()
    found = find_blocks(net, IMAGE)
    assert [block.name for block in found.blocks] == ["blocks.2", "blocks.4"]
    why = "blocks.1.conv2.up (conv_transpose2d) is no plain convolution or linear layer"
    assert found.refused["blocks.1"] == why
    with pytest.raises(ConfigError, match=r"'blocks.1' can't be gated: .*conv2.up.* leave it out"):
        find_blocks(net, IMAGE, ["blocks.1"])


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x, y: x, "does not take images alone"),
        (lambda self, x: (x, x), "gives tuple, not one tensor"),
    ],
)
def test_one_tensor_in_and_one_out(
    forward: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_plain(Bottleneck)
    monkeypatch.setattr(Network, "forward", forward)
    with pytest.raises(ConfigError, match=message):
        find_blocks(net, IMAGE)


def test_inputs_with_defaults_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, forward = make_plain(Bottleneck), Network.forward
    monkeypatch.setattr(
        Network, "forward", lambda self, x, skipped=(): x if 3 in skipped else forward(self, x)
    )
    assert len(find_blocks(net, IMAGE).blocks) == 3


def test_an_image_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"Network cannot be traced on images of shape \(1, 12, 10\) .*example_input",
    ):
        find_blocks(make_plain(Bottleneck), (1, 12, 10))


def test_two_sums_in_a_module_are_two_blocks() -> None:
    net = nn.Sequential(conv(3, 8), Twice(8, 8, 1), Twice(8, 8, 1), nn.Flatten(), nn.LazyLinear(5))
    net(make_images(1))
    found = find_blocks(net.eval(), IMAGE)
    assert [block.name for block in found.blocks] == ["1:add_1", "2", "2:add_3"]
    assert found.refused == {"1": "the first block is always executed"}


def test_sums_outside_of_modules_are_blocks_too() -> None:
    found = find_blocks(Loose().eval(), IMAGE)
    assert [block.name for block in found.blocks] == ["add_1"]
    assert found.refused == {"add": "the first block is always executed"}


def test_a_network_that_does_not_classify_is_refused() -> None:
    net = nn.Sequential(*make_plain(Bottleneck).children())[:2]
    with pytest.raises(ConfigError, match=r"gives values of shape \(1, 16, 6, 5\) .* not logits"):
        find_blocks(net.eval(), IMAGE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_signs_is_so(kind: type[nn.Module]) -> None:
    net = make_plain(kind)
    graph = trace(net, IMAGE)
    positive = [node for node in graph.data[1:] if never_negative(graph, node)]
    assert positive
    for node in positive:
        assert Steps(net, graph, [], [graph[0]], node)(make_images()).min() >= 0
