"""What a network consists of: names, weights, copies, its cost profile."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import (
    COUNT,
    GATES,
    SCHEMES,
    close,
    every_option,
    exploration,
    make_backbone,
    make_images,
    make_network,
    make_spec,
)
from torch import nn

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.errors import ConfigError
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_static_network_has_no_gate(scheme: str) -> None:
    spec = make_spec(["full"], scheme=scheme)
    net, plain, images = make_network(spec), make_backbone(spec), make_images(spec, COUNT)
    assert net.gate is None
    assert net.profile.gate_macs == 0
    for mode in (None, exploration()):
        out = net(images, exploration=mode)
        torch.testing.assert_close(out.logits, plain(images), rtol=1e-5, atol=1e-5)
        assert out.decisions.tolist() == [[0] * 5] * COUNT
        assert out.cost.tolist() == [1.0] * COUNT
    eight = make_network(make_spec([8], scheme=scheme))
    out = eight(images)
    assert out.cost.tolist() == [1 / 16] * COUNT
    both = make_network(make_spec([8, "full"], scheme=scheme))
    close(out.logits, both(images, decisions=both.forced(8, COUNT)).logits, 1e-5)


def test_the_first_block_is_never_gated() -> None:
    spec = make_spec()
    net = make_network(spec)
    names = [name for name, _ in net.backbone.named_blocks()]
    assert [block.name for block in net.blocks] == names[1:]
    assert net(make_images(spec, 2)).decisions.shape[1] == len(names) - 1
    first = net.backbone.get_submodule(names[0])
    assert type(first.conv1) is nn.Conv2d
    assert type(first.bn1) is nn.BatchNorm2d
    for block in net.blocks:
        module = net.backbone.get_submodule(block.name)
        assert isinstance(module.conv1, FractionalConv2d)
        assert isinstance(module.bn2, FractionalBatchNorm2d)
        if module.downsample is not None:
            assert type(module.downsample[0]) is nn.Conv2d
    assert [block.gated for block in net.profile.blocks] == [False, True, True, True, True, True]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("options", ["paper", "low", ("full",)])
def test_the_plain_state_survives_by_name(scheme: str, options: str | tuple[str, ...]) -> None:
    spec = make_spec(options, scheme=scheme)
    plain = make_backbone(spec)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    net = DynamicNetwork(plain, spec)
    found = net.backbone.state_dict()
    assert state.keys() <= found.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
        assert torch.equal(net.state_dict()[f"backbone.{name}"], value)
    ours = {name.rsplit(".", 1)[1] for name in found.keys() - state.keys()}
    assert ours == {
        *("option_weight", "option_bias", "option_mean", "option_var"),
        *(("activation_range",) if scheme == "paper" else ("activation_step", "weight_step")),
    }
    gate = {name for name in net.state_dict() if not name.startswith("backbone.")}
    assert all(name.startswith("gate.") for name in gate)
    assert bool(gate) == (net.gate is not None)


def test_a_state_dict_is_the_whole_network() -> None:
    spec = make_spec()
    net, other = make_network(spec), build_network(spec).eval()
    images = make_images(spec)
    assert not torch.allclose(other(images).logits, net(images).logits)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images).logits, net(images).logits)
    assert torch.equal(other(images).decisions, net(images).decisions)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_deep_copy_is_a_network_of_its_own(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec)
    decisions = every_option(net, len(images))
    before = net(images, decisions=decisions).logits
    twin = copy.deepcopy(net)
    assert torch.equal(twin(images, decisions=decisions).logits, before)
    mine = {id(parameter) for parameter in net.parameters()}
    assert not mine & {id(parameter) for parameter in twin.parameters()}
    with torch.no_grad():
        for parameter in twin.backbone.layer2.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(twin(images, decisions=decisions).logits, before)
    assert torch.equal(net(images, decisions=decisions).logits, before)
    with torch.no_grad():
        for parameter in net.backbone.layer3.parameters():
            parameter.zero_()
    for block in twin.blocks:
        module = twin.backbone.get_submodule(block.name)
        convs = [step.module for step in block._branch._steps.steps if "conv" in step.path]
        assert convs == [module.conv1, module.conv2]


@pytest.mark.parametrize("gate", GATES)
def test_the_profile_counts_the_gates(gate: str) -> None:
    net = make_network(make_spec(gate=gate, size=(8, 12)))
    assert net.gate is not None
    # Width 5, 4 options; blocks see 16, 16, 32, 32, 64 channels.
    rest = 8 * 25 + 15 + 20 if gate == "recurrent" else 20
    channels = [16, 16, 32, 32, 64]
    assert [block.in_channels for block in net.blocks] == channels
    assert [b.gate_macs for b in net.profile.blocks] == [0, *(6 * c + rest for c in channels)]
    plain = make_network(make_spec(["full"], size=(8, 12))).profile
    assert net.profile.backbone_macs == plain.backbone_macs
    report = account(net.forced("full", 2).numpy(), net.options, net.profile)
    assert report.bitops_ratio == pytest.approx(
        1 + net.profile.gate_macs / net.profile.backbone_macs, rel=1e-12
    )


def test_a_network_is_built_from_a_spec() -> None:
    spec = make_spec("low", channels=1, classes=7, size=(9, 10))
    net = build_network(spec)
    assert net.spec == spec
    assert net.options.labels == spec.options
    assert net.backbone.fc.out_features == 7
    assert net.backbone.conv1.in_channels == 1
    with pytest.raises(ConfigError, match="resnet9"):
        build_network(make_spec(model="resnet9"))
