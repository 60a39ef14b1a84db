"""Stub until the branch is merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray


class RateTracker:
    """x."""

    def __init__(
        self,
        rates: Sequence[float],
        thresholds: Sequence[float],
        quantiles: Sequence[Sequence[float]],
    ) -> None:
        self.thresholds = tuple(thresholds)

    def observe(self, scores: Sequence[NDArray[Any]]) -> None:
        """X."""
