"""Fake quantisation: the integer reference in floating point, with a gradient.

`fake_quantise` is bit for bit `dequantise(quantise(x))` of `quant.affine`. Its gradient is
straight-through inside the grid and zero where the value was clipped; the step size, if it wants
one, gets the gradient of LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fracskip.quant import fused


def round_to_grid(x: Tensor, step: Tensor, bounds: tuple[int, int], zero_point: int = 0) -> Tensor:
    """Rounds to the grid: `dequantise(quantise(x))`, without a gradient.

    Args:
        x: Float values of any shape.
        step: Positive step size(s) that broadcast against `x`.
        bounds: Smallest and largest integer.
        zero_point: The integer that stands for 0.

    Returns:
        A new tensor of x's shape and memory layout.
    """
    q = (x * step.reciprocal()).round_()
    if zero_point:
        return q.add_(zero_point).clamp_(*bounds).sub_(zero_point).mul_(step)
    return q.clamp_(*bounds).mul_(step)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    for order in (tuple(range(a.dim())), (0, *range(2, a.dim()), 1)[: a.dim()]):
        x, y = a.permute(order), b.permute(order)
        if x.is_contiguous() and y.is_contiguous():
            return torch.dot(x.view(-1), y.view(-1))  # no product tensor is written
    return (a * b).sum()


class _FakeQuantise(torch.autograd.Function):
    """Straight-through inside the grid; the step's gradient needs the grid no second time.

    With y = fake(x), clipped gradient g_x and output gradient g, LSQ's step gradient is
    Σ g·(round(v) - v) inside and Σ g·bound outside, v = x/s. Since y = s·round(v) inside and
    s·bound outside, both are (Σ g·y - Σ g_x·x) / s: two dot products instead of five passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bounds: tuple[int, int]) -> Tensor:
        # ReLU's negatives clip to an unsigned grid: quantising applies it, at no extra pass.
        y = round_to_grid(x, step, bounds)
        ctx.save_for_backward(x, step, y)
        ctx.bounds = bounds
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,) = grads
        x, step, y = ctx.saved_tensors
        low, high = ctx.bounds
        # A value up to half a step beyond the last integer still rounds to it; LSQ masks from the
        # integer itself on (equation 3), and so does hardtanh.
        if step.numel() == 1:
            edge = float(step)
            g_x = torch.ops.aten.hardtanh_backward(g, x, low * edge, high * edge)
        else:
            g_x = g * ((x > low * step) & (x < high * step))
        g_step = None
        if ctx.needs_input_grad[1]:
            if step.numel() == 1:
                total = _dot(g, y) - _dot(g_x, x)
            else:
                axes = [axis for axis in range(x.dim()) if step.shape[axis] == 1]
                total = (g * y - g_x * x).sum(axes, keepdim=True)
            factor = fused.step_factor(x.numel() // step.numel(), ctx.bounds)
            g_step = (total / step * factor).reshape(step.shape)
        return g_x, g_step, None


_fake_quantise = cast(Callable[..., Tensor], _FakeQuantise.apply)


def fake_quantise(
    x: Tensor, step: Tensor, bounds: tuple[int, int], shortcut: Tensor | None = None
) -> Tensor:
    """Symmetric fake quantisation (zero point 0) with a masked straight-through gradient.

    Args:
        x: Values of any shape.
        step: Positive step size: one value, or one per slice of `x` (as many dimensions as `x`).
        bounds: Smallest and largest integer; (0, q_max) also applies a ReLU.
        shortcut: Added to `x` first, of the same shape.

    Returns:
        A tensor of x's shape, every element an integer multiple of its step.
    """
    # A batch of one would be compiled for itself, and a few such use up what torch.compile allows.
    if fused.enabled() and x.dim() == 4 and len(x) > 1 and step.numel() == 1:
        return fused.quantise(x, step, bounds, shortcut)
    x = x if shortcut is None else x + shortcut
    # Integers above 2^8 have no exact bfloat16: under autocast, too, the grid is float32's.
    return _fake_quantise(x.float(), step, bounds)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: int, bounds: tuple[int, int]
    ) -> Tensor:
        return round_to_grid(x, scale, bounds, zero_point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


_straight_through = cast(Callable[..., Tensor], _StraightThrough.apply)


def fake_quantise_affine(
    x: Tensor, scale: Tensor, zero_point: int, bounds: tuple[int, int]
) -> Tensor:
    """Affine fake quantisation whose gradient passes straight through, clipped or not.

    This is the paper's quantiser (Banner et al., "Scalable Methods for 8-bit Training of Neural
    Networks", NeurIPS 2018); the one with learned step sizes is `fake_quantise`.
    """
    return _straight_through(x.float(), scale, zero_point, bounds)
