"""Passes over activations that respect their memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inner_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image's values: (B, C, H, W) twice -> (B,) float32."""
    if a.dtype == b.dtype == torch.float32:
        for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
            x, y = a.permute(order), b.permute(order)
            if x.is_contiguous() and y.is_contiguous():
                # A batch of dot products: no product tensor is written.
                return torch.bmm(x.flatten(1)[:, None], y.flatten(1)[:, :, None]).flatten()
    return (a * b).sum((1, 2, 3), dtype=torch.float32)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


_reorder = cast(Callable[..., Tensor], _Reorder.apply)


def reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Permutes images; the gradient is a permutation too, not a scatter.

    Args:
        x: (B, ...).
        order: A permutation (B,).
        inverse: Its inverse (B,).
    """
    return _reorder(x, order, inverse)
