"""From a gate's scores to a decision and to a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the scores' shape; taking it away makes an argmin a sample."""
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float32)
    return -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7))).to(scores.device)


def first_minimum(scores: Tensor) -> Tensor:
    """The decision: index of the least score; the first one where several are equal.

    Args:
        scores: (B, K), offsets included.

    Returns:
        (B,) int64.
    """
    # torch.argmin leaves open which of several minima it returns.
    is_best = scores == scores.amin(dim=-1, keepdim=True)
    options = scores.shape[-1]
    countdown = torch.arange(options, 0, -1, device=scores.device)
    return options - (is_best * countdown).amax(dim=-1)


def straight_through(probabilities: Tensor, choice: Tensor) -> Tensor:
    """The one-hot of a choice with the probabilities' gradient.

    Args:
        probabilities: (B, K).
        choice: (B,).

    Returns:
        (B, K): exactly one-hot in value.
    """
    one_hot = torch.nn.functional.one_hot(choice, probabilities.shape[-1]).to(probabilities.dtype)
    return one_hot + (probabilities - probabilities.detach())
