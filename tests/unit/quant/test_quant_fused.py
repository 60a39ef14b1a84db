"""The fused passes give the same integers and gradients as the plain ones."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from torch import Tensor

from fracskip.quant import fused
from fracskip.quant.fake import fake_quantise

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
Found = tuple[Tensor, Tensor, Tensor | None, Tensor]


def both_ways(
    x: Tensor, shortcut: Tensor | None, step: Tensor, bounds: tuple[int, int]
) -> tuple[Found, Found]:
    """Output and gradients: plain, and fused."""
    found = []
    g = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    for wanted in (False, True):
        leaves = [x.clone().requires_grad_(), step.clone().requires_grad_()]
        beside = None if shortcut is None else shortcut.clone().requires_grad_()
        with fused.fusing(wanted):
            y = fake_quantise(leaves[0], leaves[1], bounds, beside)
        (y.float() * g).sum().backward()
        found.append((y, leaves[0].grad, None if beside is None else beside.grad, leaves[1].grad))
    return found[0], found[1]


@needs_compiler
@pytest.mark.parametrize("bounds", [(0, 3), (0, 255), (-7, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("summed", [False, True])
def test_the_same_bits_both_ways(
    summed: bool, layout: torch.memory_format, bounds: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, shortcut = (torch.randn(3, 5, 7, 6).contiguous(memory_format=layout) for _ in range(2))
    step = torch.tensor([0.05])
    plain, fast = both_ways(x, shortcut if summed else None, step, bounds)
    assert torch.equal(plain[0], fast[0])
    assert plain[0].stride() == fast[0].stride()
    assert torch.equal(plain[1], fast[1])
    if summed:
        assert torch.equal(plain[2], fast[2])
    torch.testing.assert_close(fast[3], plain[3], rtol=1e-4, atol=1e-6)
    assert plain[0].unique().numel() > 3


@needs_compiler
def test_under_autocast_what_a_convolution_takes_is_narrow_and_the_stream_is_not() -> None:
    x, step = torch.randn(2, 3, 4, 4).bfloat16(), torch.tensor([0.1])
    with fused.fusing(), torch.autocast("cpu", torch.bfloat16):
        narrow = fake_quantise(x, step, (0, 15))
        stream = fake_quantise(x, step, (0, 255), torch.randn(2, 3, 4, 4))
    assert narrow.dtype == torch.bfloat16
    assert stream.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake_quantise(x, step, (0, 15)).bfloat16(), narrow)


@needs_compiler
def test_training_and_evaluation_stay_within_what_is_compiled() -> None:
    """Past a limit of variants `torch.compile` leaves what is new uncompiled, and slow."""
    torch._dynamo.reset()
    step, shortcut = torch.tensor([0.1], requires_grad=True), torch.randn(2, 3, 4, 4)
    kinds = itertools.product((False, True), (torch.float32, torch.bfloat16), (None, shortcut))
    with fused.fusing(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for narrow, kind, beside in kinds:
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                for learns in (False, True):
                    x = torch.randn(2, 3, 4, 4).to(kind).requires_grad_(learns)
                    fake_quantise(x, step, (0, 15), beside).float().sum().backward()
                with torch.no_grad():
                    fake_quantise(x, step.detach(), (0, 15), beside)
                with torch.inference_mode():
                    fake_quantise(torch.randn(2, 3, 4, 4).to(kind), step, (0, 15), beside)


def test_it_is_on_where_it_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        fused, "quantise", lambda x, *_: asked.append(tuple(x.shape)) or torch.zeros_like(x)
    )
    images, weight, step = torch.ones(2, 2, 3, 3), torch.ones(4, 9), torch.tensor([0.5])
    with fused.fusing():
        with fused.fusing(False):
            fake_quantise(images, step, (0, 3))
        assert not asked
        fake_quantise(images, step, (0, 3))
        fake_quantise(images[:1], step, (0, 3))  # a batch of one would be compiled for itself
        fake_quantise(weight, step, (0, 3))
        fake_quantise(images, torch.ones(1, 2, 1, 1), (0, 3))
    fake_quantise(images, step, (0, 3))
    assert asked == [(2, 2, 3, 3)]
