"""From a budget to a lean: one network at any cost between its cheapest and its dearest.

A lean is added to the gates' logits, times the option's rank or its cost: above 0 all decisions
lean towards more computation. After training it is measured what leans cost; a budget between two
measured costs gets a lean between theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.errors import ConfigError

TAKES_NONE = "this network was trained for one budget and takes none: leave budget out"


def checked_budgets(budget: ArrayLike, count: int) -> NDArray[np.float32]:
    """One computation share for each image, (B,).

    Args:
        budget: One share for all images, or (B,).
        count: B.

    Raises:
        ConfigError: if it is no number, not in (0, 1], or of another shape.
    """
    try:
        values = np.asarray(budget, dtype=np.float32)
    except (TypeError, ValueError):
        raise ConfigError(f"budget {budget!r} is no number: give a share in (0, 1]") from None
    if values.shape not in ((), (1,), (count,)):
        raise ConfigError(
            f"budget of shape {values.shape} does not fit: give one share, or one for each of "
            f"the {count} images"
        )
    if not ((values > 0) & (values <= 1)).all():
        raise ConfigError(f"budget {budget!r} is out of range: give a share in (0, 1]")
    return np.ascontiguousarray(np.broadcast_to(values, (count,)))


def checked_range(budgets: NDArray[np.float32], reach: tuple[float, float]) -> None:
    """Refuses budgets (B,) that a network does not reach.

    Raises:
        ConfigError: if one lies outside.
    """
    low, high = reach
    # Ends that were printed and typed in again are still the ends.
    outside = (budgets < low * (1 - 1e-3)) | (budgets > high * (1 + 1e-3))
    if outside.any():
        raise ConfigError(
            f"budget {float(budgets[outside][0]):.4g} is out of this network's reach: give a "
            f"share from {low:.4g} to {high:.4g}"
        )


@dataclass(frozen=True)
class BudgetCurve:
    """What leans cost: (cost, lean) pairs, ascending in both, at least two."""

    points: tuple[tuple[float, float], ...]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest budget."""
        return self.points[0][0], self.points[-1][0]

    def leans_at(self, budgets: NDArray[np.float32]) -> NDArray[np.float32]:
        """The lean for each budget (B,); linear in log cost between measured points.

        Raises:
            ConfigError: if a budget is none that this network reaches.
        """
        costs, leans = np.array(self.points).T
        checked_range(budgets, self.range)
        leaned = np.interp(np.log(budgets), np.log(costs), leans)
        return np.asarray(leaned, dtype=np.float32)
