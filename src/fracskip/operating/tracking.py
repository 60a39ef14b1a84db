"""Thresholds of a cascade that keep its rates on images of another distribution, without labels.

A threshold that was found on validation images escalates another share of other images: of noisy
ones, say, twice as many, at twice the cost. Which share it should be is known, and so are the
scores of the images that were answered. So each threshold follows a quantile of recent scores:
of so many as were seen since their distribution last changed (as ADWIN does: Bifet and Gavalda,
SDM 2007), in blocks, with a likelihood-ratio test for a change in the share below the threshold.

Only the share of images that reach each member is kept, neither its cost nor the accuracy: images
that are harder lose more of it.

Shapes: B images.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import ConfigError

WINDOW = 2048  # The most recent scores that a threshold is a quantile of: 8 KB each.
DRIFT_IMAGES = 1000  # The most recent images that drift is of.
BLOCK = 32  # Thresholds follow after so many scores.
_SHORTEST = 64  # Since a change.
# Log likelihood ratio from which a share has changed.
_EVIDENCE = 10.0
_CHANCE = 1e-4
_GOLDEN = (math.sqrt(5) - 1) / 2

Scores = NDArray[np.float32]


class RateTracker:
    """Follows the scores of images that a chain answers, and adapts the chain's thresholds.

    Thresholds are those given until scores were seen. How images are cut into batches does not
    matter to the first threshold but that a batch is answered with one: after as many images it is
    the same. It can be used from several threads at once.

    Args:
        rates: The share of all images that reaches each member, (K,), descending from 1: what is to
            be kept.
        thresholds: An image whose score is under its member's is escalated, (K - 1,).
        quantiles: Of the scores of those validation images that reached the member, for each but
            the last: at levels equally spaced from 0 (the least) to 1 (the largest), such as 33,
            ascending.
        validated: How many validation images quantiles are of.

    Raises:
        ConfigError: if these are not of one chain.
    """

    def __init__(
        self,
        rates: Sequence[float],
        thresholds: Sequence[float],
        quantiles: Sequence[Sequence[float]],
        validated: int = WINDOW,
    ) -> None:
        _check(rates, thresholds, quantiles, validated)
        shares = (after / before if before else 0.0 for before, after in itertools.pairwise(rates))
        self._positions = [
            _Position(*each) for each in zip(shares, thresholds, quantiles, strict=True)
        ]
        self._quantiles = np.asarray(quantiles[0], np.float64)
        self._validated = validated
        self._images = 0
        self._lock = threading.Lock()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """For the next batch, (K - 1,)."""
        with self._lock:
            return tuple(each.threshold for each in self._positions)

    def observe(self, scores: Sequence[Scores]) -> None:
        """Takes the scores of a batch that was answered with `thresholds`.

        Args:
            scores: Of each member, float32 (B,), NaN for images that did not reach it. The last
                member's may be left out.
        """
        with self._lock:
            self._images += len(scores[0])
            reached: NDArray[np.bool_] = np.ones(len(scores[0]), bool)
            for position, each in zip(self._positions, scores, strict=False):
                position.add(each[reached & ~np.isnan(each)])
                # What the next threshold is compared with are scores of images that this one, as
                # it has become, would escalate.
                reached = reached & (each < position.threshold)

    @property
    def images(self) -> int:
        """How many were observed."""
        with self._lock:
            return self._images

    @property
    def drift(self) -> float:
        """How far the last 1,000 images are from validation images, from 0 to 1.

        The Kolmogorov-Smirnov distance between the first member's scores, at the quantiles' levels.
        """
        return self._drift()[0]

    @property
    def drifted(self) -> bool:
        """Whether that is more than chance, which comes to so much once in 10,000 times."""
        distance, images = self._drift()
        spread = 1 / images + 1 / self._validated if images else math.inf
        return distance > math.sqrt(math.log(2 / _CHANCE) / 2 * spread)

    def _drift(self) -> tuple[float, int]:
        """The distance, and of how many images."""
        with self._lock:
            recent = np.sort(self._positions[0].latest())
        if not len(recent):
            return 0.0, 0
        levels = np.linspace(0, 1, len(self._quantiles))
        # At most this share of validation images lies below a quantile, at least this up to it.
        below = np.searchsorted(recent, self._quantiles, "left") / len(recent)
        up_to = np.searchsorted(recent, self._quantiles, "right") / len(recent)
        return float(max((below - levels).max(), (levels - up_to).max(), 0.0)), len(recent)


class _Position:
    """One threshold of a chain, and the scores that it is compared with."""

    def __init__(self, share: float, threshold: float, quantiles: Sequence[float]) -> None:
        self.threshold = float(threshold)
        self._share = share
        # The window starts full of validation scores, so that thresholds move little at first. The
        # given threshold is the quantile of the given share. Any part of them is as good as all.
        at = np.linspace(0, 1, len(quantiles))
        values = np.where(
            at < share, np.minimum(quantiles, threshold), np.maximum(quantiles, threshold)
        )
        place = int(np.searchsorted(at, share))
        at, values = np.insert(at, place, share), np.insert(values, place, threshold)
        levels = np.arange(WINDOW) * _GOLDEN % 1
        self._recent: Scores = np.interp(levels, at, values).astype(np.float32)
        self._alike = WINDOW
        self._seen = 0
        self._waiting = np.empty(0, np.float32)

    def add(self, scores: Scores) -> None:
        """Scores, in order."""
        waiting = np.concatenate([self._waiting, scores])
        for start in range(0, len(waiting) - BLOCK + 1, BLOCK):
            self._follow(waiting[start : start + BLOCK])
        self._waiting = waiting[len(waiting) // BLOCK * BLOCK :]

    def latest(self) -> Scores:
        """Of images, no validation scores."""
        return self._recent[-min(self._seen, DRIFT_IMAGES) :] if self._seen else self._recent[:0]

    def _follow(self, block: Scores) -> None:
        self._seen += len(block)
        self._recent = np.concatenate([self._recent, block])[-WINDOW:]
        self._alike = min(self._alike + len(block), WINDOW)
        if not 0 < self._share < 1:
            return
        self._alike = _alike(self._recent[-self._alike :] < self.threshold)
        self.threshold = _quantile(self._recent[-self._alike :], self._share)


def _alike(below: NDArray[np.bool_]) -> int:
    """Of how many of the last scores the share under the threshold is the same.

    Of all, unless a change at one of the places that are tried is far likelier than none.
    """
    total, under = len(below), int(np.count_nonzero(below))
    none = _log_likelihood(under, total)
    found, most, late = total, _EVIDENCE, _SHORTEST
    while late < total:
        of_late = int(np.count_nonzero(below[-late:]))
        before = _log_likelihood(under - of_late, total - late)
        ratio = _log_likelihood(of_late, late) + before - none
        if ratio > most:
            found, most = late, ratio
        late *= 2
    return found


def _log_likelihood(successes: int, trials: int) -> float:
    """The largest that a chance of success gives."""
    failures = trials - successes
    if not successes or not failures:
        return 0.0
    return successes * math.log(successes / trials) + failures * math.log(failures / trials)


def _quantile(scores: Scores, share: float) -> float:
    """Under which so large a share of further scores is expected, (L,) in any order."""
    ordered = np.sort(scores)
    at = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low]) + (at - low) * float(ordered[high] - ordered[low])


def _check(
    rates: Sequence[float],
    thresholds: Sequence[float],
    quantiles: Sequence[Sequence[float]],
    validated: int,
) -> None:
    if not len(rates) == len(thresholds) + 1 == len(quantiles) + 1 or len(rates) < 2:
        raise ConfigError(
            f"{len(rates)} rates, {len(thresholds)} thresholds and quantiles of {len(quantiles)} "
            "members do not fit: give a rate for each of two members or more, and the others for "
            "each but the last"
        )
    descending = all(before >= after for before, after in itertools.pairwise(rates))
    if rates[0] != 1 or not descending or not rates[-1] >= 0:
        raise ConfigError(
            f"rates {list(rates)} are not those of a chain: the first is 1, and each is at most "
            "the one before"
        )
    for each in quantiles:
        steps = np.diff(np.asarray(each, np.float64))
        if len(each) < 2 or not (steps >= 0).all() or not np.isfinite(steps).all():
            raise ConfigError(
                f"quantiles {list(each)} are no quantiles: give two finite numbers or more, "
                "ascending, from the least score to the largest"
            )
    for threshold, (before, after) in zip(thresholds, itertools.pairwise(rates), strict=True):
        if math.isnan(threshold) or (math.isinf(threshold) and 0 < after < before):
            raise ConfigError(f"threshold {threshold!r} does not fit: give a finite number")
    if validated < 1:
        raise ConfigError(f"validated {validated!r} is out of range: give one image or more")
