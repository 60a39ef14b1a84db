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


# Values that are gone through for all candidates at a time: as many as near caches hold.
_PIECE = 1 << 16


def best_step(x: Tensor, bounds: tuple[int, int], candidates: int = 64) -> Tensor:
    """The step sizes of least squared rounding error, by search: a start for learned steps.

    Args:
        x: Values of shape (rows, n); each row gets its own step.
        bounds: Smallest and largest integer.
        candidates: How many shares of the row's largest magnitude are tried.

    Returns:
        Steps of shape (rows, 1), positive. A row of zeros gets a harmless tiny step.
    """
    top = bounds[1]
    if bounds[0] == 0:
        x = x.clamp_min(0)  # what an unsigned grid can't hold is lost at every step
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    widest = torch.maximum(high, -low).clamp_min(2.0**-40) / top
    return _least_error(x, widest, (-top if bounds[0] else 0, top), candidates)


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
    widest = (high - low) / top
    zero = min(top, round(float(-low / widest)))  # the same for every share of the range
    step = _least_error(values[None], widest.view(1, 1), (-zero, top - zero), candidates)
    return step[0, 0], zero


def _least_error(x: Tensor, widest: Tensor, limits: tuple[int, int], candidates: int) -> Tensor:
    """Of shares of each row's widest step (rows, 1), those that round its values best."""
    steps = [widest * share for share in torch.linspace(1.0, 0.1, candidates).tolist()]
    errors = torch.zeros(candidates, *widest.shape, dtype=torch.float64, device=x.device)
    for values in torch.split(x, max(1, _PIECE // len(x)), dim=1):
        for error, step in zip(errors, steps, strict=True):
            off = round_to_grid(values, step, limits).sub_(values)
            error += off.square_().sum(1, keepdim=True)
    return torch.stack(steps).gather(0, errors.argmin(0, keepdim=True))[0]
