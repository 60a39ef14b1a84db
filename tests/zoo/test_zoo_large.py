"""Networks of ImageNet's size as they are used there: bfloat16, channels last, torch.compile.

Small networks of every kind are in tests/unit/dynamic/test_dynamic_convert.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import torch
from tests.support.residual_networks import settled
from tests.zoo.test_zoo_contract import off
from torch import Tensor, nn

import fracskip
from fracskip.devices import computes_in_bf16
from fracskip.dynamic import DynamicNetwork, Exploration
from fracskip.models import create_backbone
from fracskip.operating import Prediction

NAMES = ["torchvision/resnet50", "torchvision/mobilenet_v2"]
COUNT, SIZE = 2, 224
LAST = torch.channels_last


@dataclass(frozen=True)
class Case:
    """A network before and after, and what the former says of the images."""

    plain: nn.Module
    net: DynamicNetwork
    images: Tensor
    logits: Tensor


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    images = torch.randn(COUNT, 3, SIZE, SIZE)
    plain = settled(create_backbone(request.param, num_classes=10), images)
    net = fracskip.convert(
        plain,
        ["skip", 4, "full"],
        gate=fracskip.GateConfig(width=8, standardise=True),
        example_input=images[:1],
        calibration=[images],
    )
    with torch.no_grad():
        return Case(plain, net, images, plain(images))


def rough() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def holds(out: Prediction[torch.Tensor], net: DynamicNetwork) -> None:
    """Every image has a decision for each block, and the cost that follows from them."""
    assert out.decisions.shape == (COUNT, len(net.blocks))
    assert out.logits.isfinite().all()
    costs = torch.tensor(net.options.costs)[out.decisions].mean(1)
    torch.testing.assert_close(out.cost.detach(), costs)


@torch.no_grad()
def test_in_bfloat16_it_is_the_original_in_bfloat16(case: Case) -> None:
    net, images = case.net, case.images
    with rough():
        plain = case.plain(images)
        full = net(images, decisions=net.forced("full", COUNT))
        holds(net(images), net)
    assert full.logits.dtype == plain.dtype == torch.bfloat16
    holds(full, net)
    # Not nearer to float32's logits than the plain network is, and no further from them. How far
    # that is, torch and the processor say: 0.21 for a MobileNet where bfloat16 is emulated.
    error, usual = off(full.logits, case.logits), off(plain, case.logits)
    assert usual < (0.2 if computes_in_bf16(torch.device("cpu")) else 0.25)
    assert error < 1.5 * usual + 0.01


@torch.no_grad()
def test_channels_last_says_the_same(case: Case) -> None:
    net, images = case.net, case.images.contiguous(memory_format=LAST)
    before = net(case.images)
    net.to(memory_format=LAST)  # type: ignore[call-overload]
    try:
        full = net(images, decisions=net.forced("full", COUNT))
        after = net(images, decisions=before.decisions)
        holds(net(images), net)
    finally:
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert off(full.logits, case.logits) < 1e-4
    # At 4 bits sums in another order round to other levels.
    assert float((after.logits - before.logits).abs().mean() / before.logits.std()) < 0.1


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_weights_and_gates_learn(case: Case, amp: bool) -> None:
    net, images = case.net, case.images
    layout = LAST if amp else torch.contiguous_format
    net.to(memory_format=layout).train()  # type: ignore[call-overload]
    net.zero_grad()
    exploration = Exploration(torch.Generator().manual_seed(0), noise=3.0, sample_rate=1.0)
    with rough() if amp else contextlib.nullcontext():
        out = net(images.contiguous(memory_format=layout), exploration=exploration)
    loss = nn.functional.cross_entropy(out.logits.float(), torch.arange(COUNT)) + out.cost.mean()
    loss.backward()
    net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    holds(out, net)
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in found.values())
    # Whatever the blocks between them execute, stem and classifier learn.
    first, *_, last = (f"backbone.{name}" for name, _ in net.backbone.named_parameters())
    assert min(found[first].abs().max(), found[last].abs().max()) > 0
    gates = [grad.abs().sum() for name, grad in found.items() if name.startswith("gate.")]
    assert net.gate is not None
    assert len(gates) == len(list(net.gate.parameters()))
    assert min(gates) > 0


@pytest.mark.parametrize("case", NAMES[:1], indirect=True)  # Dynamo takes its time
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's, where graphs end
def test_compiled_it_says_and_learns_the_same(case: Case) -> None:
    """Dynamo's part alone: a C++ compiler takes minutes over so many graphs."""
    net, images = case.net, case.images
    decisions = torch.arange(COUNT * len(net.blocks)).view(COUNT, -1) % 3
    bars = torch.tensor([not block.can_be_skipped for block in net.blocks])
    decisions = torch.where(bars & (decisions == 0), 1, decisions)
    found = []
    torch._dynamo.reset()
    for run in (net, torch.compile(net, backend="eager")):
        net.zero_grad()
        out = run(images, decisions=decisions)
        nn.functional.cross_entropy(out.logits, torch.arange(COUNT)).backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        found.append((out, grads))
    (plain, wanted), (compiled, grads) = found
    torch.testing.assert_close(compiled.logits, plain.logits)
    torch.testing.assert_close(compiled.cost, plain.cost)
    torch.testing.assert_close(grads, wanted, rtol=1e-3, atol=1e-3)
