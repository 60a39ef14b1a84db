"""One pass through a network: shapes, options, routing, training."""

from __future__ import annotations

import copy

import numpy as np
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
from torch import Tensor, nn

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.operating import Prediction


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_mixing_and_routing_agree_at_equal_decisions(scheme: str, gate: str, noise: float) -> None:
    net = make_network(make_spec(scheme=scheme, gate=gate))
    images = make_images(net.spec, COUNT)
    # The paper's ranges move in training mode, so there the numbers may be compared only where
    # they stand still.
    net.train(scheme == "lsq")
    dense = net(images, exploration=exploration(noise=noise, dense=True))
    sampled = net(images, exploration=exploration(noise=noise, sample_rate=0.5))
    net.eval()
    if noise:
        assert len(dense.decisions.unique()) == 4
        assert (dense.decisions != net(images).decisions).any()
    else:
        routed = net(images)
        assert torch.equal(routed.decisions, dense.decisions)
        assert torch.equal(routed.decisions, sampled.decisions)
        close(routed.logits, dense.logits)
        close(routed.cost, dense.cost)
    for out in (dense, sampled):
        forced = net(images, decisions=out.decisions)
        assert torch.equal(forced.decisions, out.decisions)
        close(forced.logits, out.logits)
        close(forced.cost, out.cost, 1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_training_moves_the_papers_ranges_and_nothing_else(dense: bool) -> None:
    for scheme in SCHEMES:
        net = make_network(make_spec(scheme=scheme)).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net(make_images(net.spec) * 3, exploration=exploration(dense=dense, noise=1.0))
        moved = {name for name, v in net.state_dict().items() if not torch.equal(v, before[name])}
        assert all(name.endswith("quantiser.activation_range") for name in moved)
        assert bool(moved) == (scheme == "paper")


def test_no_norm_is_ever_in_training_mode() -> None:
    net = make_network(make_spec())
    assert net.train() is net
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 15  # stem, two a block, two shortcuts
    assert net.training
    assert net.backbone.training
    assert not any(norm.training for norm in norms)
    assert not net.eval().training


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", [("skip", "4", "8", "full"), ("skip", "2", "3"), ("4", "full")])
def test_an_images_result_does_not_depend_on_the_others(
    gate: str, options: tuple[str, ...]
) -> None:
    net = make_network(make_spec(options, gate=gate))
    images = make_images(net.spec, COUNT)
    together = net(images)
    assert len(together.decisions.unique()) > 1
    shuffle = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = net(images[shuffle])
    assert torch.equal(shuffled.decisions, together.decisions[shuffle])
    close(shuffled.logits, together.logits[shuffle])
    for index in range(COUNT):
        alone = net(images[index : index + 1])
        assert alone.decisions.tolist() == [together.decisions[index].tolist()]
        close(alone.logits[0], together.logits[index])
        close(alone.cost[0], together.cost[index], 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_of_an_output(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme, classes=1, channels=1, size=(9, 14)))
    for count in (1, 3):
        out = net(make_images(net.spec, count))
        assert isinstance(out, Prediction)
        assert out.logits.shape == (count, 1)
        assert out.decisions.shape == (count, len(net.blocks)) == (count, 5)
        assert out.decisions.dtype == torch.int64
        assert out.cost.shape == (count,)
        assert out.logits.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_skip_is_the_shortcuts_alone(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec, 3)
    out = net(images, decisions=net.forced("skip", 3))
    (_, first), *rest = net.backbone.named_blocks()
    x = first(net.backbone.stem(images))
    for _, block in rest:
        x = block.shortcut(x).relu()
    assert torch.equal(out.logits, net.backbone.head(x))
    assert out.cost.tolist() == [0.0] * 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [1, 4])
def test_all_full_is_the_plain_backbone(scheme: str, count: int) -> None:
    spec = make_spec(scheme=scheme)
    net, plain = make_network(spec), make_backbone(spec)
    images = make_images(spec, count)
    out = net(images, decisions=net.forced("full", count))
    torch.testing.assert_close(out.logits, plain(images), rtol=1e-5, atol=1e-5)
    assert out.cost.tolist() == [1.0] * count


def test_the_cost_of_an_output_is_the_accountings() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, COUNT)
    for out in (
        net(images),
        net(images, decisions=every_option(net, COUNT)),
        net(images, exploration=exploration(noise=2.0)),
        net(images, exploration=exploration(noise=2.0, dense=True)),
    ):
        report = account(out.decisions.numpy(), net.options, net.profile)
        np.testing.assert_allclose(out.cost.detach().numpy(), report.image_cp, rtol=1e-6)
        assert float(out.cost.detach().mean()) == pytest.approx(report.cp, rel=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_channels_last_gives_the_same(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec, COUNT)
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    flat = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(twin(flat).decisions, net(images).decisions)
    for decisions in (None, every_option(net, COUNT), net.forced("full", COUNT)):
        wanted = net(images, decisions=decisions).logits
        torch.testing.assert_close(
            twin(flat, decisions=decisions).logits, wanted, rtol=1e-5, atol=1e-5
        )

    def gradients(run: DynamicNetwork, x: Tensor) -> dict[str, Tensor]:
        out = run(x, exploration=exploration(sample_rate=1.0))
        (out.logits.square().mean() + out.cost.mean()).backward()
        return {name: p.grad for name, p in run.named_parameters() if p.grad is not None}

    found, wanted = gradients(twin, flat), gradients(net, images)
    assert found.keys() == wanted.keys()
    assert any(name.startswith("gate") for name in found)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dense", [False, True])
def test_bfloat16_autocast_trains(scheme: str, dense: bool) -> None:
    net = make_network(make_spec(scheme=scheme)).train()
    images = make_images(net.spec, COUNT)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images, exploration=exploration(noise=1.0, dense=dense, sample_rate=0.5))
    assert out.logits.dtype == torch.bfloat16
    # Costs are no activations: they keep float32, to the last decision.
    assert out.cost.dtype == torch.float32
    report = account(out.decisions.numpy(), net.options, net.profile)
    np.testing.assert_allclose(out.cost.detach().numpy(), report.image_cp, rtol=1e-6)
    (out.logits.float().square().mean() + out.cost.mean()).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if name.startswith("gate."))
    assert any(grad.any() for name, grad in grads.items() if "conv2.weight" in name)
    close(out.logits.float(), net.eval()(images, decisions=out.decisions).logits, 0.2)


@pytest.mark.parametrize(
    "shape", [(8, 8), (3, 8, 8), (0, 3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (1, 2, 3, 8, 8)]
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    net = make_network(make_spec())
    with pytest.raises(ConfigError, match=r"do not fit: \(images, 3, height, width\)") as caught:
        net(torch.zeros(shape))
    assert str(shape) in str(caught.value)
