"""BatchNorm statistics along the paths that gates choose."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import make_images, make_network, make_spec

from fracskip.dynamic import DynamicNetwork
from fracskip.options import Option
from fracskip.quant.normalisation import FractionalBatchNorm2d

COUNT = 96


def statistics(net: DynamicNetwork) -> dict[str, torch.Tensor]:
    return {
        name: value.clone()
        for name, value in net.state_dict().items()
        if name.endswith(("_mean", "_var"))
    }


def check_projection(net: DynamicNetwork, index: int, x: torch.Tensor) -> None:
    block = net.blocks[index]
    conv, norm = net.backbone.get_submodule(f"{block.name}.downsample")
    z = conv(x) if net.stream is None else conv.execute(x, Option(8))
    torch.testing.assert_close(norm.running_mean, z.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, z.var((0, 2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stream", ["float", "int8"])
def test_statistics_become_those_of_the_images_that_execute_the_option(stream: str) -> None:
    net = make_network(make_spec(stream=stream))
    images = make_images(net.spec, COUNT)
    net.reestimate([images[:40], images[40:]], fewest=1)
    with torch.inference_mode():
        decisions = net(images).decisions
        x = net.begin(images)
        seen = 0
        for index, block in enumerate(net.blocks):
            if not block.identity_shortcut:
                check_projection(net, index, x)
            for rank, option in enumerate(net.options):
                group = x[decisions[:, index] == rank]
                if option.is_skip or not len(group):
                    continue
                seen += 1
                module = net.backbone.get_submodule(block.name)
                conv, norm = module.conv1, module.bn1
                z = conv.execute(group, option)
                _, _, mean, var = norm._terms(option)
                torch.testing.assert_close(mean, z.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(var, z.var((0, 2, 3)), rtol=1e-3, atol=1e-3)
            x = block.route(x, decisions[:, index])
    assert seen > len(net.blocks)  # several options were taken somewhere


def test_a_second_time_changes_nothing() -> None:
    net = make_network(make_spec())
    images = [make_images(net.spec, COUNT)]
    net.reestimate(images)
    once = statistics(net)
    net.reestimate(images)
    for name, value in statistics(net).items():
        torch.testing.assert_close(value, once[name], rtol=1e-4, atol=1e-5)


def test_rare_options_keep_theirs() -> None:
    net = make_network(make_spec())
    before = statistics(net)
    net.reestimate([make_images(net.spec, COUNT)], fewest=COUNT + 1)
    after = statistics(net)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed  # projections are executed for every image
    assert all("downsample" in name for name in changed)


def test_modes_and_the_rest_of_the_state_stay() -> None:
    net = make_network(make_spec()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.reestimate([make_images(net.spec, COUNT)], fewest=1)
    assert net.training
    after = net.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("_mean", "_var")) for name in changed)
    norms = [m for m in net.modules() if isinstance(m, FractionalBatchNorm2d)]
    assert not any(norm._seen or norm._plain for norm in norms)


def test_statistics_that_options_share_are_kept() -> None:
    net = make_network(make_spec(scheme="paper"))
    before = statistics(net)
    net.reestimate([make_images(net.spec, COUNT)], fewest=1)
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())
