"""Ranges and step sizes from the values that a network really sees."""

from __future__ import annotations

import torch
from torch import Tensor

from fracskip.quant.fake import round_to_grid


def update_range(running: Tensor, x: Tensor, momentum: float) -> None:
    """Moves a running (low, high) towards the values' own, in place.

    Args:
        running: Two values; NaN before the first update, which takes the values' range as it is.
        x: Values of any shape.
        momentum: Share of the old range that is kept (the paper: 0.9).
    """
    low, high = torch.aminmax(x.detach())
    seen = torch.stack([low, high]).to(running.dtype)
    running.copy_(torch.where(running.isnan(), seen, momentum * running + (1 - momentum) * seen))


def best_step(x: Tensor, bounds: tuple[int, int], candidates: int = 64) -> Tensor:
    """The step sizes of least squared rounding error, by search: a start for learned steps.

    Args:
        x: Values of shape (rows, n); each row gets its own step.
        bounds: Smallest and largest integer.
        candidates: How many shares of the row's largest magnitude are tried.

    Returns:
        Steps of shape (rows, 1), positive. A row of zeros gets a harmless tiny step.
    """
    q_max = bounds[1]
    widest = x.clamp_min(0) if bounds[0] == 0 else x.abs()
    largest = widest.amax(dim=1, keepdim=True).clamp_min(2.0**-40) / q_max
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.linspace(1.0, 0.1, candidates).tolist():
        step = largest * share
        error = (widest - round_to_grid(widest, step, (0, q_max))).square().mean(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best


def best_grid(values: Tensor, top: int, candidates: int = 64) -> tuple[Tensor, int]:
    """The grid of least squared rounding error for values of both signs, by search.

    Args:
        values: (n,).
        top: The largest integer of an unsigned grid.
        candidates: How many shares of the values' range are tried.

    Returns:
        The step, positive, and the zero point, an integer of 0..top.
    """
    low, high = values.min().clamp_max(0), values.max().clamp_min(2.0**-40)
    found = []
    for share in torch.linspace(1.0, 0.1, candidates).tolist():
        step = (high - low) * share / top
        zero = min(top, round(float(-low * share / step)))
        rounded = round_to_grid(values, step, (-zero, top - zero))
        found.append((float((values - rounded).square().mean()), step, zero))
    _, step, zero = min(found, key=lambda each: each[0])
    return step, zero
