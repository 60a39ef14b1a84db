"""How sure a member of a chain is of its answers, by the arithmetic of docs/bundle.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def scores_of(logits: NDArray[np.float32], temperature: float, score: str) -> NDArray[np.float32]:
    """The scores (B,) of logits (B, N); larger is surer, NaN where a logit is no number.

    Args:
        logits: Of one member.
        temperature: What they are divided by first.
        score: 'probability', 'margin' or 'entropy'.

    Raises:
        ValueError: if the score is unknown.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        best = logits.argmax(1)[:, None]
        over = (logits - np.take_along_axis(logits, best, 1)) / np.float32(temperature)
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
    """In order of class, rounded after each."""
    return np.asarray(np.cumsum(values, axis=1, dtype=np.float32)[:, -1])
