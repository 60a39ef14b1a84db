"""The gates' gradient without computing every option.

With y = Σ_k w_k y_k and a straight-through one-hot w, the gradient of the loss by w_k is
⟨g, y_k⟩, g being the gradient by y: it asks for every option's output on every image. But w comes
from a softmax, whose gradient does not change when the same number is taken from all K terms. So
take ⟨g, y_chosen⟩ from each:

    ∂L/∂w_k  ≙  ⟨g, y_k - y_chosen⟩

The chosen option's term is now zero, skipping's is free (its output is the shortcut, computed
anyway), and each other option's may be left out at random if it is weighted by the inverse of
its probability otherwise. Subtracting y_chosen, which resembles y_k, is also what keeps the
variance small. The estimate is unbiased for the full straight-through gradient; a test enumerates
the random choices and compares it with `FractionalBlock.mix`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fracskip.dynamic.passes import inner_per_image


class _GateGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weights: Tensor,
        skipped: Tensor | None,
        tried: Tensor,
        rows: Tensor,
        option: int,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(y, skipped, tried, rows)
        ctx.shape, ctx.dtype = weights.shape, weights.dtype
        ctx.option, ctx.factor = option, factor
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        y, skipped, tried, rows = ctx.saved_tensors
        by_weight = g.new_zeros(ctx.shape, dtype=ctx.dtype)
        if skipped is not None:
            gain = inner_per_image(g, skipped) - inner_per_image(g, y)
            by_weight[:, 0] = gain.to(ctx.dtype)
        if len(rows):
            gain = inner_per_image(g[rows], tried - y[rows]) * ctx.factor
            by_weight[rows, ctx.option] = gain.to(ctx.dtype)
        return g, by_weight, None, None, None, None, None


_gate_gradient = cast(Callable[..., Tensor], _GateGradient.apply)


def pass_gate_gradient(
    y: Tensor,
    weights: Tensor,
    skipped: Tensor | None,
    tried: Tensor,
    rows: Tensor,
    option: int,
    factor: float,
) -> Tensor:
    """Returns y as it is; in the backward pass, gives `weights` its estimated gradient.

    Args:
        y: The chosen options' outputs (B, C, H, W).
        weights: Straight-through one-hots (B, K).
        skipped: What skipping gives (B, C, H, W); None where option 0 is not skip.
        tried: Outputs of an option on images that did not choose it, (T, C, H, W).
        rows: Those images (T,), each at most once.
        option: That option's index.
        factor: One over the probability that an image tries a given option.
    """
    return _gate_gradient(y, weights, skipped, tried, rows, option, factor)
