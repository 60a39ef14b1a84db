"""Confidence intervals. Needs no torch."""

from __future__ import annotations

import math

_Z95 = 1.96


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """The 95% interval of a share estimated from so many images (Wilson, 1927).

    >>> low, high = wilson_interval(0.925, 10_000)
    >>> round(low, 4), round(high, 4)
    (0.9197, 0.93)
    """
    z2 = _Z95**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return min(share, middle - half), max(share, middle + half)
