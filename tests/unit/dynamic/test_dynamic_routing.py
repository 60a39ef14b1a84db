"""Routing: what is not chosen is not computed, and each image gets what it chose."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_networks import (
    COUNT,
    SCHEMES,
    counted_macs,
    every_option,
    make_images,
    make_network,
    make_spec,
)
from torch import Tensor, nn

from fracskip.dynamic import DynamicNetwork, Exploration
from fracskip.dynamic.routing import OptionSample
from fracskip.options import Option
from fracskip.quant.convolution import FractionalConv2d


@pytest.fixture(scope="module", params=SCHEMES)
def net(request: pytest.FixtureRequest) -> DynamicNetwork:
    return make_network(make_spec(scheme=request.param))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, str]]:
    """Rows that each fractional convolution executed at each option."""
    rows: Counter[tuple[int, str]] = Counter()
    execute = FractionalConv2d.execute

    def counting(self: FractionalConv2d, x: Tensor, option: Option, *args: Tensor | None) -> Tensor:
        rows[id(self), option.label] += len(x)
        return execute(self, x, option, *args)

    def in_full(self: FractionalConv2d, x: Tensor) -> Tensor:
        rows[id(self), "full"] += len(x)
        return nn.Conv2d.forward(self, x)

    monkeypatch.setattr(FractionalConv2d, "execute", counting)
    monkeypatch.setattr(FractionalConv2d, "forward", in_full)
    return rows


def wanted_rows(net: DynamicNetwork, decisions: Tensor) -> Counter[tuple[int, str]]:
    wanted: Counter[tuple[int, str]] = Counter()
    modules = dict(net.backbone.named_modules())
    for column, block in zip(decisions.T.tolist(), net.blocks, strict=True):
        for choice in column:
            label = net.options.labels[choice]
            if label != "skip":
                wanted[id(modules[f"{block.name}.conv1"]), label] += 1
                wanted[id(modules[f"{block.name}.conv2"]), label] += 1
    return wanted


def executed_macs(net: DynamicNetwork, decisions: Tensor) -> int:
    """What the profile says these decisions execute, whatever the width; gates left out."""
    profile = net.profile
    always = profile.fixed_macs - profile.gate_macs
    branches = torch.tensor([block.branch_macs for block in profile.gated])
    runs = decisions != net.options.index("skip")
    return always * len(decisions) + int((runs * branches).sum())


@pytest.mark.parametrize("label", ["skip", "4", "8", "full"])
def test_one_option_for_all_runs_nothing_else(
    net: DynamicNetwork, executed: Counter[tuple[int, str]], label: str
) -> None:
    decisions = net.forced(label, COUNT)
    with counted_macs() as macs:
        net(make_images(net.spec, COUNT), decisions=decisions)
    assert executed == wanted_rows(net, decisions)
    assert (len(executed) == 0) == (label == "skip")
    assert macs[0] == executed_macs(net, decisions)


def test_each_image_is_computed_once_at_its_own_option(
    net: DynamicNetwork, executed: Counter[tuple[int, str]]
) -> None:
    decisions = every_option(net, COUNT)
    assert {len(column.unique()) for column in decisions.T} >= {4}
    with counted_macs() as macs:
        net(make_images(net.spec, COUNT), decisions=decisions)
    assert executed == wanted_rows(net, decisions)
    assert macs[0] == executed_macs(net, decisions)


@pytest.mark.parametrize("gate", ["recurrent", "feedforward"])
def test_with_gates_stem_and_shortcuts_what_runs_is_what_is_counted(
    executed: Counter[tuple[int, str]], gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(gate=gate)
    net = make_network(spec)
    assert net.gate is not None
    asked: list[tuple[int, int]] = []
    forward = type(net.gate).forward

    def counting(self: nn.Module, block: int, pooled: Tensor, state: object) -> Tensor:
        asked.append((block, len(pooled)))
        return forward(self, block, pooled, state)

    monkeypatch.setattr(type(net.gate), "forward", counting)
    executed.clear()
    with counted_macs() as macs:
        out = net(make_images(spec, COUNT))
    assert len(out.decisions.unique()) > 1  # the gates do tell images apart
    assert executed == wanted_rows(net, out.decisions)
    # Every gate decides once for every image, in order.
    assert asked == [(block, COUNT) for block in range(len(net.blocks))]
    # The LSTM's own matrices and products and the pooling are no calls of `linear`.
    width, options = 5, 4
    linear = sum(block.in_channels * width + width * options for block in net.blocks)
    pooling = sum(block.in_channels for block in net.blocks)
    lstm = (8 * width**2 + 3 * width) * len(net.blocks) if gate == "recurrent" else 0
    assert net.profile.gate_macs == linear + pooling + lstm
    assert macs[0] == executed_macs(net, out.decisions) + COUNT * linear


def test_the_top_of_a_batch_of_one(net: DynamicNetwork) -> None:
    image = make_images(net.spec, 1)
    for decisions in (every_option(net, 1), net.forced("skip", 1), net.forced("full", 1)):
        with counted_macs() as macs:
            out = net(image, decisions=decisions)
        assert out.logits.shape == (1, 3)
        assert macs[0] == executed_macs(net, decisions)


def test_a_block_gives_each_image_what_its_option_gives(net: DynamicNetwork) -> None:
    for block in net.blocks:
        x = torch.rand(COUNT, block.in_channels, 6, 5)
        choice = torch.tensor([2, 0, 3, 1, 2, 0])
        y = block.route(x, choice)
        for image, index in enumerate(choice.tolist()):
            alone = block.execute(x[image : image + 1], net.options[index])
            torch.testing.assert_close(y[image : image + 1], alone, rtol=1e-5, atol=1e-5)


def test_skipping_passes_the_shortcut_on(net: DynamicNetwork) -> None:
    for block, (name, module) in zip(net.blocks, net.backbone.named_blocks()[1:], strict=True):
        x = torch.rand(3, block.in_channels, 6, 6)
        y = block.execute(x, Option(0))
        if module.downsample is None:
            assert y is x, name
        else:
            assert torch.equal(y, module.downsample(x).relu()), name
        # Skipping is executing with a residual of zero.
        assert torch.equal(y, (torch.zeros_like(y) + module.shortcut(x)).relu())


def test_images_that_agree_are_not_copied(net: DynamicNetwork) -> None:
    identity = net.blocks[0]
    x = torch.rand(3, identity.in_channels, 4, 4)
    assert identity.route(x, torch.zeros(3, dtype=torch.int64)) is x


def test_full_execution_is_the_plain_block(net: DynamicNetwork) -> None:
    plain = make_network(make_spec(["full"])).backbone  # the same seed: the same weights
    blocks = dict(plain.named_blocks())
    for block in net.blocks:
        x = torch.rand(3, block.in_channels, 6, 6)
        module = blocks[block.name]
        want = nn.functional.relu(
            _norm(module.bn2, module.conv2(nn.functional.relu(_norm(module.bn1, module.conv1(x)))))
            + module.shortcut(x)
        )
        torch.testing.assert_close(block.execute(x, Option(32)), want, rtol=1e-5, atol=1e-5)


def _norm(norm: nn.BatchNorm2d, z: Tensor) -> Tensor:
    return nn.functional.batch_norm(
        z, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def test_routed_gradients_are_those_of_the_images_alone(net: DynamicNetwork) -> None:
    block = net.blocks[0]
    torch.manual_seed(0)
    x = torch.rand(COUNT, block.in_channels, 5, 4).requires_grad_()
    choice = torch.tensor([3, 1, 1, 0, 2, 3])
    y = block.route(x, choice)
    g = torch.randn_like(y)
    y.backward(g)
    assert x.grad is not None
    for image, index in enumerate(choice.tolist()):
        own = x.detach()[image : image + 1].requires_grad_()
        block.execute(own, net.options[index]).backward(g[image : image + 1])
        torch.testing.assert_close(x.grad[image], own.grad[0], rtol=1e-4, atol=1e-5)


def test_in_training_only_trials_are_executed_beside_the_chosen(
    executed: Counter[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_network(make_spec()).train()
    samples: list[OptionSample] = []
    draw = Exploration.sample
    monkeypatch.setattr(
        Exploration, "sample", lambda *args: samples.append(draw(*args)) or samples[-1]
    )
    exploration = Exploration(torch.Generator().manual_seed(0), noise=1.0, sample_rate=0.5)
    executed.clear()
    out = net(make_images(net.spec, COUNT), exploration=exploration)
    wanted = wanted_rows(net, out.decisions)
    modules = dict(net.backbone.named_modules())
    again = 0
    for block, sample, column in zip(net.blocks, samples, out.decisions.T, strict=True):
        assert len(sample.rows) == 3
        # Who chose the option that is tried has computed it already.
        new = int((column[sample.rows] != sample.option).sum())
        again += 3 - new
        for name in ("conv1", "conv2"):
            module = modules[f"{block.name}.{name}"]
            wanted[id(module), net.options.labels[sample.option]] += new
    assert again > 0
    assert executed == wanted


def test_dense_mixing_executes_every_option_for_every_image(
    executed: Counter[tuple[int, str]],
) -> None:
    net = make_network(make_spec()).train()
    executed.clear()
    net(make_images(net.spec, COUNT), exploration=Exploration(torch.Generator(), dense=True))
    assert set(executed.values()) == {COUNT}
    assert len(executed) == 2 * len(net.blocks) * 3
