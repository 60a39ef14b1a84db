"""Calls of an engine, native or portable, without a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ChainPredictions(NamedTuple):
    """What an engine writes; B images, N classes, L gated blocks of each member's network.

    Attributes:
        logits: (B, N).
        decisions: (B, L) of each member; 255 where it did not write.
        scores: (B,) of each member.
        answered: (B,).
        latency_us: (B,).
    """

    logits: NDArray[np.float32]
    decisions: list[NDArray[np.uint8]]
    scores: list[NDArray[np.float32]]
    answered: NDArray[np.uint8]
    latency_us: NDArray[np.float32]


def arguments(engine: Any, count: int, networks: Sequence[int] = (0,)) -> dict[str, Any]:
    """Arguments of `run` but for the images, complete for chains of one: no budgets, no scores."""
    return {
        "logits": np.full((count, engine.classes), np.nan, np.float32),
        "latency_us": np.full(count, np.nan, np.float32),
        "networks": list(networks),
        "decisions": [np.full((count, engine.gated_blocks(k)), 255, np.uint8) for k in networks],
        "budgets": [None for _ in networks],
        "multipliers": [None for _ in networks],
        "thresholds": [],
        "temperatures": [1.0 for _ in networks],
        "score": "probability",
        "scores": [],
        "answered": np.full(count, 255, np.uint8),
    }


def run_chain(
    engine: Any, images: NDArray[Any], networks: Sequence[int] = (0,), **asked: Any
) -> ChainPredictions:
    """Runs a chain, with scores.

    Args:
        engine: Of either kind.
        images: (B, H, W, C).
        networks: Its members.
        asked: Other arguments than the usual ones; numbers stand for as many as there are images.
    """
    count = len(images)
    given = arguments(engine, count, networks)
    given["scores"] = [np.full(count, -1, np.float32) for _ in networks]
    for name in ("budgets", "multipliers", "thresholds"):
        if name in asked:
            asked[name] = [_each(value, count) for value in asked[name]]
    given |= asked
    engine.run(images, **given)
    return ChainPredictions(*(given[name] for name in ChainPredictions._fields))


def _each(value: Any, count: int) -> Any:
    return np.full(count, value, np.float32) if isinstance(value, int | float) else value
