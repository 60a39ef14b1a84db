"""Fake quantisation in one pass over memory each way.

Written as separate tensor operations, a quantised activation is read and written a dozen times in a
step, which takes twice as long as its convolutions do. Here `torch.compile` makes one loop of each
direction; integers are the same, to the bit. It needs a C++ compiler (a Triton on a GPU), so it is
asked for (`fusing`), and `fake` works without.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHANNELS_FIRST, _CHANNELS_LAST = (0, 1, 2, 3), (0, 2, 3, 1)
_enabled = False


def enabled() -> bool:
    """Whether `fake` calls on this module."""
    return _enabled


@contextmanager
def fusing(wanted: bool = True) -> Iterator[None]:
    """Within it, `fake` calls on this module, or does not; for the whole process."""
    global _enabled
    before, _enabled = _enabled, wanted
    try:
        yield
    finally:
        _enabled = before


def step_factor(values: int, bounds: tuple[int, int]) -> float:
    """LSQ's factor of a step's gradient (section 2.2): relative updates like the weights' own.

    Args:
        values: How many values share the step.
        bounds: Smallest and largest integer.
    """
    return 1 / math.sqrt(values * max(bounds[1], -bounds[0]))


def _round(x: Tensor, step: Tensor, bounds: Tensor, into: torch.dtype) -> Tensor:
    q = (x.float() * step.reciprocal()).round().clamp(bounds[0], bounds[1])
    return (q * step).to(into)


def _round_sum(x: Tensor, shortcut: Tensor, step: Tensor, bounds: Tensor) -> Tensor:
    return _round(x.float() + shortcut, step, bounds, torch.float32)


def _gradient(g: Tensor, x: Tensor, step: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    g_x, total = _wide_gradient(g, x, step, bounds)
    return g_x.to(x.dtype), total


def _gradient_sum(
    g: Tensor, x: Tensor, shortcut: Tensor, step: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    g_sum, total = _wide_gradient(g, x.float() + shortcut, step, bounds)
    return g_sum.to(x.dtype), g_sum.to(shortcut.dtype), total


def _wide_gradient(g: Tensor, x: Tensor, step: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The input's gradient in float32, and the step's sum; `fake` says where they come from."""
    x, g = x.float(), g.float()
    g_x = torch.where((x > bounds[0] * step) & (x < bounds[1] * step), g, 0.0)
    y = _round(x, step, bounds, torch.float32)
    return g_x, (g * y - g_x * x).sum()


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    """Calls what was compiled, always alike but for types of values.

    Whether a tensor wants a gradient and whether autocast is on would each be a variant of its own,
    and past a few variants `torch.compile` compiles no more.
    """
    plain = [each.detach() if isinstance(each, Tensor) else each for each in args]
    with torch.autocast(plain[0].device.type, enabled=False):
        return _compiled(function)(*plain)


@functools.cache
def _limits(low: int, high: int, device: torch.device) -> Tensor:
    return torch.tensor([float(low), float(high)], device=device)


def _flat(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.permute(order).reshape(-1)


def _shaped(flat: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    lying = flat.view([shape[axis] for axis in order])
    return lying.permute([order.index(axis) for axis in range(4)])


class _Quantise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, step: Tensor, bounds: tuple[int, int]
    ) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.order = _CHANNELS_LAST if last else _CHANNELS_FIRST
        limits = _limits(*bounds, x.device)
        flat = _flat(x, ctx.order)
        if shortcut is None:
            # What autocast would make of it before the convolution.
            kind = x.device.type
            narrow = torch.is_autocast_enabled(kind)
            into = torch.get_autocast_dtype(kind) if narrow else torch.float32
            y = _call(_round, flat, step, limits, into)
            ctx.save_for_backward(flat, step)
        else:
            beside = _flat(shortcut, ctx.order)
            y = _call(_round_sum, flat, beside, step, limits)
            ctx.save_for_backward(flat, step, beside)
        ctx.bounds, ctx.shape = bounds, x.shape
        return _shaped(y, x.shape, ctx.order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, step, *beside = ctx.saved_tensors
        g = _flat(grads[0], ctx.order)
        limits = _limits(*ctx.bounds, x.device)
        backward = _gradient_sum if beside else _gradient
        *by_input, total = _call(backward, g, x, *beside, step, limits)
        g_x, g_shortcut, *_ = (*[_shaped(each, ctx.shape, ctx.order) for each in by_input], None)
        return g_x, g_shortcut, total * step_factor(x.numel(), ctx.bounds) / step, None


_quantise = cast(Callable[..., Tensor], _Quantise.apply)


def quantise(
    x: Tensor, step: Tensor, bounds: tuple[int, int], shortcut: Tensor | None = None
) -> Tensor:
    """`fake.fake_quantise` of x, or of x + shortcut.

    Args:
        x: (B, C, H, W).
        step: Positive, one value.
        bounds: Smallest and largest integer.
        shortcut: To be added first, (B, C, H, W).

    Returns:
        (B, C, H, W). A sum's is float32; x's alone is of autocast's type, where that is on.
    """
    return _quantise(x, shortcut, step, bounds)
