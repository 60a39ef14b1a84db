"""How sure an answer is, and what a chain of members answers, by the arithmetic of docs/bundle.md.

Shapes: B images, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Score = Literal["probability", "margin", "entropy"]
SCORES: tuple[Score, ...] = ("probability", "margin", "entropy")


def score_of(logits: NDArray[Any], score: str) -> NDArray[np.float32]:
    """How sure a prediction is, from 0 to 1, float32 (B,).

    Of the softmax p of the logits: 'probability' is its largest value, 'margin' that minus the
    second largest, 'entropy' 1 - H(p) / log N.

    Args:
        logits: (B, N), over a temperature (Guo et al., ICML 2017).
        score: Which.

    Returns:
        (B,); NaN where a logit is no number.

    Raises:
        ValueError: if the score is unknown.
    """
    logits = np.asarray(logits, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        best = logits.argmax(1)[:, None]
        over = logits - np.take_along_axis(logits, best, 1)
        powers = np.exp(over)
        total = _sum(powers)
        if score == "probability" or (score == "entropy" and logits.shape[1] == 1):
            found = 1 / total
        elif score == "margin":
            np.put_along_axis(powers, best, 0, 1)
            found = (1 - powers.max(1)) / total
        elif score == "entropy":
            weighted = _sum(np.where(powers > 0, powers * over, np.float32(0)))
            most = np.log(np.float32(logits.shape[1]))
            found = 1 - (np.log(total) - weighted / total) / most
        else:
            raise ValueError(f"unknown score {score!r}")
    return np.asarray(found, np.float32)


def _sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """In order of class, rounded after each, as docs/bundle.md says."""
    return np.asarray(np.cumsum(values, axis=1, dtype=np.float32)[:, -1])


def answers_of(
    logits: Sequence[NDArray[Any]], temperatures: Sequence[float], averaged: bool
) -> list[NDArray[np.float32]]:
    """What a chain answers if it ends at each of its members: logits over temperatures, (B, N).

    Args:
        logits: Of each member, (B, N).
        temperatures: Theirs.
        averaged: See `CascadePoints`.
    """
    found: list[NDArray[np.float32]] = []
    for place, (own, temperature) in enumerate(zip(logits, temperatures, strict=True)):
        scaled = np.asarray(own, np.float32) / np.float32(temperature)
        if averaged and place:
            scaled = found[-1] + (scaled - found[-1]) / np.float32(place + 1)
        found.append(scaled)
    return found
