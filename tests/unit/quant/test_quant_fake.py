from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fracskip.quant.affine import IntegerGrid
from fracskip.quant.fake import fake_quantise, fake_quantise_affine, round_to_grid


def direct_gradients(
    x: Tensor, step: float, bounds: tuple[int, int], g: Tensor
) -> tuple[list[float], float]:
    """LSQ's equations 3 and 5, one element at a time, in double precision."""
    low, high = bounds
    by_x, by_step = [], 0.0
    for value, outer in zip(x.flatten().tolist(), g.flatten().tolist(), strict=True):
        v = value / step
        if v <= low:
            by_x.append(0.0)
            by_step += outer * low
        elif v >= high:
            by_x.append(0.0)
            by_step += outer * high
        else:
            by_x.append(outer)
            by_step += outer * (round(v) - v)
    return by_x, by_step / math.sqrt(x.numel() * high)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("outer_layout", LAYOUTS, ids=["g-nchw", "g-nhwc"])
@pytest.mark.parametrize(("bits", "signed"), [(2, True), (2, False), (4, False), (8, True)])
def test_gradients_per_tensor_are_lsqs(
    layout: torch.memory_format, outer_layout: torch.memory_format, bits: int, signed: bool
) -> None:
    torch.manual_seed(bits)
    bounds = IntegerGrid(bits, signed).bounds
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn(2, 3, 4, 5).contiguous(memory_format=outer_layout)
    step = torch.tensor([0.7 / bounds[1]], requires_grad=True)
    y = fake_quantise(x, step, bounds)
    assert y.is_contiguous(memory_format=layout)
    y.backward(g)
    assert x.grad is not None
    assert step.grad is not None
    by_x, by_step = direct_gradients(x.detach(), step.item(), bounds, g)
    assert 0 < by_x.count(0.0) < len(by_x)  # some are clipped, some are not
    assert x.grad.flatten().tolist() == by_x
    assert step.grad.shape == step.shape
    assert float(step.grad) == pytest.approx(by_step, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 6])
def test_gradients_per_channel_are_lsqs(
    layout: torch.memory_format, bits: int, channels: int
) -> None:
    torch.manual_seed(bits)
    bounds = IntegerGrid(bits, signed=True).bounds
    weight = torch.randn(channels, 4, 3, 3).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn(channels, 4, 3, 3)
    step = (torch.rand(channels, 1, 1, 1) + 0.5).div(bounds[1]).requires_grad_()
    fake_quantise(weight, step, bounds).backward(g)
    assert weight.grad is not None
    assert step.grad is not None
    assert step.grad.shape == step.shape
    for channel in range(channels):
        by_x, by_step = direct_gradients(
            weight.detach()[channel], step[channel].item(), bounds, g[channel]
        )
        assert weight.grad[channel].flatten().tolist() == by_x
        assert 0 < by_x.count(0.0) < len(by_x)
        assert float(step.grad[channel]) == pytest.approx(by_step, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_gradients_need_no_contiguous_memory(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    step = torch.tensor([0.25], requires_grad=True)
    # The gradient of a sum is one number, expanded.
    fake_quantise(x, step, (-3, 3)).sum().backward()
    assert x.grad is not None
    assert step.grad is not None
    by_x, by_step = direct_gradients(x.detach(), 0.25, (-3, 3), torch.ones(shape))
    assert x.grad.flatten().tolist() == by_x
    assert float(step.grad) == pytest.approx(by_step, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("slices", [1, 2], ids=["per-tensor", "per-slice"])
def test_the_gradient_is_masked_from_the_last_integer_on(slices: int) -> None:
    row = [-8.0, -7.25, -7.0, -0.6, 0.0, 6.9, 7.0, 7.25, 7.6, 50.0]
    x = torch.tensor([row] * slices, requires_grad=True)
    step = torch.ones(slices, 1, requires_grad=True)
    y = fake_quantise(x, step, (-7, 7))
    assert y.tolist() == [[-7, -7, -7, -1, 0, 7, 7, 7, 7, 7]] * slices
    y.backward(torch.arange(1.0, 11.0).expand(slices, 10))
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 0, 4, 5, 6, 0, 0, 0, 0]] * slices
    assert step.grad is not None
    # -7 for the first three, 7 for the last four, rounding errors (-0.4 and 0.1) in between.
    total = -7 * (1 + 2 + 3) + 4 * -0.4 + 6 * 0.1 + 7 * (7 + 8 + 9 + 10)
    wanted = torch.full((slices, 1), total / math.sqrt(10 * 7))
    torch.testing.assert_close(step.grad, wanted)


def test_an_unsigned_grid_applies_a_relu_with_its_gradient() -> None:
    x = torch.tensor([-3.0, -0.25, 0.25, 1.0, 2.0, 4.0], requires_grad=True)
    y = fake_quantise(x, torch.tensor([0.5]), (0, 3))
    assert y.tolist() == [0, 0, 0, 1, 1.5, 1.5]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 0, 0]


def test_a_step_that_wants_no_gradient_gets_none() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    step = torch.tensor([0.1])
    fake_quantise(x, step, (0, 15)).sum().backward()
    assert step.grad is None
    assert x.grad is not None


def test_the_affine_gradient_passes_straight_through_clipped_or_not() -> None:
    x = torch.tensor([-50.0, -1.0, 0.3, 2.0, 50.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    y = fake_quantise_affine(x, scale, 2, (0, 3))
    assert y.tolist() == [-2, -1, 0, 1, 1]
    g = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
    y.backward(g)
    assert x.grad is not None
    assert x.grad.tolist() == g.tolist()
    assert scale.grad is None


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.booleans())
def test_a_grid_is_idempotent(seed: int, bits: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    bounds = IntegerGrid(bits, signed).bounds
    step = torch.rand(1, generator=generator) + 0.01
    x = torch.randn(50, generator=generator) * step * bounds[1]
    once = round_to_grid(x, step, bounds)
    assert torch.equal(round_to_grid(once, step, bounds), once)
    integers = once / step
    assert torch.allclose(integers, integers.round(), rtol=0, atol=2.0**-6)
    assert integers.max() <= bounds[1] + 2.0**-6


def test_the_input_is_left_alone() -> None:
    x = torch.randn(20)
    before = x.clone()
    fake_quantise(x, torch.tensor([0.1]), (-7, 7))
    fake_quantise_affine(x, torch.tensor(0.1), 7, (0, 15))
    assert torch.equal(x, before)


def test_under_autocast_the_grid_is_float32s() -> None:
    x = torch.linspace(-1, 1, 201).requires_grad_()
    step = torch.tensor([1 / 2**14], requires_grad=True)
    wanted = fake_quantise(x, step, (-32767, 32767)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = x.to(torch.bfloat16)
        y = fake_quantise(half, step, (-32767, 32767))
        assert torch.equal(fake_quantise(x, step, (-32767, 32767)), wanted)
        assert fake_quantise_affine(half, step.detach(), 3, (0, 255)).dtype == torch.float32
    assert y.dtype == torch.float32
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
