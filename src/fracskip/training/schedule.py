"""Learning rates as pure functions of how far a stage has come, and the optimisers they drive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fracskip.config import OptimConfig


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Share of the highest learning rate at a point of the stage.

    Args:
        config: Schedule and warm-up.
        progress: Share of the stage that is done, in [0, 1).

    >>> [lr_factor(OptimConfig(schedule="step"), at) for at in (0.0, 0.5, 0.8)]
    [1.0, 0.1, 0.01]
    """
    if progress < config.warmup:
        return (progress + 1e-3) / (config.warmup + 1e-3)
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    if config.schedule == "onecycle":
        return 1 - rest
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def _decays(name: str, value: torch.Tensor) -> bool:
    """Whether it is a convolution's or a linear layer's weight, of any option."""
    last = name.rsplit(".", 1)[-1]
    linear = value.dim() == 2 and (last == "weight" or last.isdigit())
    return value.dim() == 4 or (linear and not name.startswith("gate."))


def weight_optimiser(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; only convolutions and linear layers decay, and not gates'."""
    named = list(named)
    groups: list[dict[str, Any]] = [
        {"params": [value for name, value in named if _decays(name, value)]},
        {"params": [value for name, value in named if not _decays(name, value)], "weight_decay": 0},
    ]
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
