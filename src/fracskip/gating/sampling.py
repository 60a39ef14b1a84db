"""From a gate's logits to a decision and to a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_like(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the logits' shape; adding it makes an argmax a sample."""
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float32)
    return -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7))).to(logits.device)


def choose(logits: Tensor) -> Tensor:
    """The decision: index of the largest logit; the first one where several are equal.

    Args:
        logits: (B, K).

    Returns:
        (B,) int64.
    """
    # torch.argmax leaves open which of several maxima it returns.
    is_best = logits == logits.amax(dim=-1, keepdim=True)
    options = logits.shape[-1]
    countdown = torch.arange(options, 0, -1, device=logits.device)
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
