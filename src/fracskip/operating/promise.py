"""How far a cascade's accuracy drops under that of its last member alone, with a stated confidence.

On n validation images an operating point gets `worse` images wrong that the last member alone gets
right, and `better` images right that the last member gets wrong. The drop in accuracy is estimated
by (worse - better) / n. Here are p-values of the hypothesis that the true drop is larger than
allowed, which hold for any finite n, and the choice of the cheapest point for which it is rejected.

Images are taken to be drawn independently from the distribution that the promise is about; the
promise is not about others.

The test is the exact unconditional one for paired proportions (Hsueh, Liu and Chen, Biometrics
2001). Of bounds that hold for any finite n it rejects by far the most: with 5,000 images of which
3% differ, no true drop, 0.5% allowed and 95% confidence, it does in 66% of draws, a mixture of bets
(Waudby-Smith and Ramdas, JRSS B 2023) in 14%, the Hoeffding-Bentkus bound (Bates et al., JACM 2021)
in none. The normal approximation does in 67%, but with 500 images it errs in 7% of draws, not 5%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import ConfigError

MOST_CONFIDENCE = 0.99999
MOST_IMAGES = 1_000_000
# What a p-value spends on the chance that the share of images that differ is out of its interval.
_GAMMA = 1e-6
# How finely that interval is searched. Twice as many change a p-value of 0.05 by 1%.
_CELLS = 512
_AT_ONCE = 1 << 15  # Numbers that are computed at once: what fits a processor's cache.

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def p_value(images: int, better: int, worse: int, max_drop: float) -> float:
    """A p-value of the hypothesis that the true drop is larger than allowed.

    Under the hypothesis it is at most a with a chance of at most a, for every a and every number of
    images. It takes about 10 ms for 10,000 images of which a few percent differ.

    An image is better, worse or neither. Outcomes are ordered by the score statistic: the distance
    of the estimated drop from the allowed one in standard errors at the allowed one. The p-value is
    the largest chance, under the hypothesis, of an outcome at least as far as this one. It lies at
    the hypothesis' edge, where one parameter is free: the share of images that differ. That is
    searched within a confidence interval, whose error is added (Berger and Boos, JASA 1994).

    Args:
        images: Validation images.
        better: How many of them the point gets right and the last member wrong.
        worse: The reverse.
        max_drop: The drop in accuracy that is allowed, as a share of images, in [0, 1).

    Raises:
        ConfigError: if there are more such images than images, or the drop is out of range.
    """
    _check(images, better, worse, max_drop)
    if better - worse + images * max_drop <= 0:
        return 1.0
    low, high = _interval(images, better + worse)
    low = max(low, max_drop)
    if low >= high:
        return _GAMMA
    margin = math.ceil(5.5 * math.sqrt(images * high)) + 30
    first = max(0, math.floor(images * low) - margin)
    last = min(images, math.ceil(images * high) + margin)
    differing = np.arange(first, last + 1)
    score = float(_score(images, np.array(better), np.array(worse), max_drop))
    least = _least_better(images, differing, max_drop, score * (1 - 1e-9))
    # Cells of the interval, equally wide in standard errors. These outcomes become only likelier
    # with more better and with fewer worse images, so that their chance within a cell is at most
    # that at the most better and the fewest worse of it.
    edges = np.linspace(math.sqrt(low), math.sqrt(high), _CELLS + 1) ** 2
    p_better, p_worse = (edges[1:] - max_drop) / 2, (edges[:-1] + max_drop) / 2
    return min(1.0, _GAMMA + _largest_chance(images, differing, least, p_better, p_worse))


def cheapest(
    points: Sequence[tuple[int, int, int]], max_drop: float, confidence: float
) -> int | None:
    """The cheapest operating point whose drop is at most the allowed one, with confidence.

    The chance, over validation images, that a point is chosen whose true drop is larger is at most
    1 - confidence, however many points there are: each is tested only if all dearer ones passed
    (fixed-sequence testing in Learn then Test: Angelopoulos et al., 2021, arXiv:2110.01052).

    Args:
        points: (images, better, worse) of each, see `p_value`, from dearest to cheapest. Which
            points these are and their order must not depend on the labels that are counted here. If
            labels were used to find points (to choose among chains, or thresholds), count on other
            images.
        max_drop: The drop in accuracy that is allowed, as a share of images, in [0, 1).
        confidence: In (0, 0.99999].

    Returns:
        The point's index; None if not even the first passed.

    Raises:
        ConfigError: as `p_value` does, or if the confidence is out of range.
    """
    level = _level(confidence)
    chosen = None
    for index, (images, better, worse) in enumerate(points):
        if p_value(images, better, worse, max_drop) > level:
            break
        chosen = index
    return chosen


def images_needed(
    images: int, better: int, worse: int, max_drop: float, confidence: float
) -> int | None:
    """How many validation images, with the same shares, would let a point pass: about, within 1%.

    Args:
        images: As in `p_value`.
        better: Likewise.
        worse: Likewise.
        max_drop: Likewise.
        confidence: As in `cheapest`.

    Returns:
        The number; None if no number would, or more than a million.

    Raises:
        ConfigError: as `cheapest` does.
    """
    _check(images, better, worse, max_drop)
    level = _level(confidence)
    if worse - better >= images * max_drop:
        return None

    def passes(count: int) -> bool:
        fewer, more = better * count // images, -(-worse * count // images)
        return more <= count - fewer and p_value(count, fewer, more, max_drop) <= level

    enough = 1
    while not passes(enough):
        if enough >= MOST_IMAGES:
            return None
        enough = min(2 * enough, MOST_IMAGES)
    few = enough // 2
    while enough - few > max(1, enough // 100):
        middle = (few + enough) // 2
        if passes(middle):
            enough = middle
        else:
            few = middle
    return enough


def _check(images: int, better: int, worse: int, max_drop: float) -> None:
    if not (images >= 1 and better >= 0 and worse >= 0 and better + worse <= images):
        raise ConfigError(
            f"{better} better and {worse} worse of {images} images do not fit: give counts of "
            "one image or more, of which some are better and others worse"
        )
    if not 0 <= max_drop < 1:
        raise ConfigError(
            f"max_drop {max_drop!r} is out of range: give a share of images in [0, 1), such as "
            "0.005 for half a percentage point"
        )


def _level(confidence: float) -> float:
    if not 0 < confidence <= MOST_CONFIDENCE:
        raise ConfigError(
            f"confidence {confidence!r} is out of range: give a number in (0, {MOST_CONFIDENCE}], "
            "such as 0.95"
        )
    return 1 - confidence


def _interval(images: int, count: int) -> tuple[float, float]:
    """Between which a chance lies, but for an error of at most gamma, by Chernoff's bound."""
    share, limit = count / images, math.log(2 / _GAMMA) / images

    def possible(chance: float) -> bool:
        successes = share * math.log(share / chance) if share else 0.0
        failures = (1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0
        return successes + failures <= limit

    ends = []
    for end in (0.0, 1.0):
        inside, outside = share, end
        for _ in range(100):
            middle = (inside + outside) / 2
            if possible(middle):
                inside = middle
            else:
                outside = middle
        ends.append(outside)
    return ends[0], ends[1]


def _score(images: int, better: Integers, worse: Integers, drop: float) -> Floats:
    """The estimated drop's distance below the allowed one, in standard errors at the allowed one.

    It grows with better and falls with worse images, wherever it is positive.
    """
    # The chance of a better image that is likeliest if the drop is the allowed one.
    half = better + worse - drop * (2 * images + better - worse)
    root = np.sqrt(half * half + 8 * images * drop * (1 - drop) * better)
    variance = (half + root) / 2 + images * drop * (1 - drop)
    distance = better - worse + images * drop
    return np.asarray(distance / np.sqrt(np.maximum(variance, 1e-12)))


def _least_better(images: int, differing: Integers, drop: float, score: float) -> Integers:
    """How many must be better for an outcome to have the score; differing + 1 if none has.

    Args:
        images: Validation images.
        differing: How many are better or worse, ascending by 1, (M,).
        drop: The allowed one.
        score: Positive.
    """
    low, high = np.zeros_like(differing), differing + 1
    while (low < high).any():
        middle = (low + high) // 2
        reached = _score(images, middle, differing - middle, drop) >= score
        reached |= middle > differing
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return high


def _largest_chance(
    images: int, differing: Integers, least: Integers, p_better: Floats, p_worse: Floats
) -> float:
    """The largest chance of so many better images or more, at one of K pairs of chances.

    Numbers of differing images that are not listed count as if they had enough better ones.

    Args:
        images: Validation images.
        differing: How many are better or worse, ascending by 1, (M,).
        least: How many of them must be better at least, (M,).
        p_better: The chances that an image is better, (K,).
        p_worse: That it is worse, (K,).
    """
    step = np.diff(least)
    # An outcome stays with one more better, and with one worse less.
    assert ((step == 0) | (step == 1)).all(), "outcomes are not ordered by better and worse"
    at = least[:-1] - 1 + step
    before = _Binomial(differing[:-1], at)
    # What is left out at the low end is counted in.
    below = np.arange(max(0, least[0] - len(differing)), least[0])
    start = _Binomial(np.full_like(below, differing[0]), below)
    count = _Binomial(np.full_like(differing, images), differing)
    largest = 0.0
    cells = max(1, _AT_ONCE // len(differing))
    for cell in range(0, len(p_better), cells):
        better, worse = p_better[cell : cell + cells, None], p_worse[cell : cell + cells, None]
        share = better / (better + worse)
        # The chance of enough better ones, of one number of differing images after the other: with
        # one image more, it may be the one that was missing (or, if one more is needed, missing).
        enough = np.empty((len(share), len(differing)))
        enough[:, 0] = 1 - start.chance(share).sum(1)
        enough[:, 1:] = before.chance(share) * np.where(step, share - 1, share)
        np.cumsum(enough, axis=1, out=enough)
        lacking = (count.chance(better + worse) * (1 - enough)).sum(1)
        largest = max(largest, float(1 - lacking.min()))
    return largest


class _Binomial:
    """Chances of `successes` (M,) in `trials` (M,), impossible numbers included."""

    def __init__(self, trials: Integers, successes: Integers) -> None:
        possible = (successes >= 0) & (successes <= trials)
        self._successes = np.where(possible, successes, 0)
        self._failures = trials - self._successes
        ways = _log_factorials(trials)
        ways -= _log_factorials(self._successes) + _log_factorials(self._failures)
        self._log_ways = np.where(possible, ways, -np.inf)

    def chance(self, each: Floats) -> Floats:
        """Float64 (K, M), for K chances (K, 1) of a success, in (0, 1)."""
        logs = self._successes * np.log(each)
        logs += self._failures * np.log1p(-each)
        logs += self._log_ways
        return np.asarray(np.exp(logs, out=logs))


def _log_factorials(counts: Integers) -> Floats:
    return np.array([math.lgamma(count + 1) for count in counts.tolist()])
