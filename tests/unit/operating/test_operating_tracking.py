"""Thresholds that follow scores: rates that are kept when images change, and drift."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fracskip.errors import ConfigError
from fracskip.operating.tracking import BLOCK, WINDOW, RateTracker

LEVELS = np.linspace(0, 1, 33).tolist()
BEFORE, AFTER, SETTLED = 4000, 6500, 500

Scores = NDArray[np.float32]
Change = Callable[[Scores], Scores]


def tracker(*rates: float, validated: int = WINDOW) -> RateTracker:
    """Of a chain whose members' scores are evenly spread in (0, 1), independent of each other."""
    shares = [after / before for before, after in itertools.pairwise(rates)]
    return RateTracker(rates, shares, [LEVELS] * len(shares), validated)


def reached(
    followed: RateTracker, scores: Sequence[Scores], batch: int, follow: bool = True
) -> NDArray[np.bool_]:
    """Which images reach each member, (K, B); the tracker observes them."""
    found = []
    for start in range(0, len(scores[0]), batch):
        given, here = [], [np.ones(len(scores[0][start : start + batch]), bool)]
        for each, threshold in zip(scores, followed.thresholds, strict=True):
            given.append(np.where(here[-1], each[start : start + batch], np.float32(np.nan)))
            here.append(given[-1] < threshold)
        if follow:
            followed.observe(given)
        found.append(np.stack(here))
    return np.concatenate(found, axis=1)


def stream(members: int, change: Change, seed: int = 0) -> list[Scores]:
    """Scores of each member but the last, of another distribution from image `BEFORE` on."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(members - 1):
        scores = draw.random(BEFORE + AFTER).astype(np.float32)
        found.append(np.concatenate([scores[:BEFORE], change(scores[BEFORE:])]))
    return found


def worst(found: NDArray[np.bool_], rates: Sequence[float]) -> float:
    """The largest error of a member's rate in a window of 2,000 images."""
    sums = np.cumsum(np.pad(found, ((0, 0), (1, 0))), axis=1)
    return float(np.abs((sums[:, 2000:] - sums[:, :-2000]) / 2000 - np.array(rates)[:, None]).max())


@pytest.mark.parametrize("batch", [16, 250, 2000])
@pytest.mark.parametrize(
    ("rates", "change", "without"),
    [
        ((1.0, 0.2), lambda scores: scores, 0.0),
        ((1.0, 0.2), np.square, 0.2),
        ((1.0, 0.2), np.sqrt, 0.1),
        ((1.0, 0.05), lambda scores: scores * 0.5, 0.03),
        ((1.0, 0.6), lambda scores: scores + 2, 0.5),  # Out of the range of validation scores.
        ((1.0, 0.6), lambda scores: scores - 2, 0.3),
        ((1.0, 0.4, 0.1), np.square, 0.2),
        ((1.0, 0.6, 0.3, 0.15), lambda scores: scores * 0.8, 0.1),
    ],
)
def test_rates_are_kept(
    rates: tuple[float, ...], change: Change, without: float, batch: int
) -> None:
    """In any 2,000 images, but while a change is new; thresholds that stay are further off."""
    scores = stream(len(rates), change)
    settled = math.ceil((BEFORE + SETTLED) / batch) * batch
    found = reached(tracker(*rates), scores, batch)
    # Chance alone is off by up to 0.03 in some window.
    assert worst(found[:, :BEFORE], rates) < 0.04
    assert worst(found[:, settled:], rates) < 0.06
    fixed = reached(tracker(*rates), scores, batch, follow=False)
    assert worst(fixed[:, settled:], rates) > without


def test_the_first_threshold_depends_on_images_and_not_on_batches() -> None:
    (scores,) = stream(2, np.square)
    thresholds = []
    for batch in (1, 7, 250, 2000, len(scores)):
        followed = tracker(1.0, 0.3)
        for start in range(0, len(scores), batch):
            followed.observe([scores[start : start + batch]])
        thresholds.append(followed.thresholds)
        assert followed.images == len(scores)
    assert len(set(thresholds)) == 1
    assert thresholds[0][0] == pytest.approx(0.3**2, abs=0.02)


def test_thresholds_are_those_given_until_a_block_of_scores_was_seen() -> None:
    followed = RateTracker([1.0, 0.3], [0.3], [LEVELS])
    followed.observe([np.full(BLOCK - 1, 0.9, np.float32)])
    assert followed.thresholds == (0.3,)
    # A block counts as 32 of 2,048 validation images: for 30% in all, 10 more lie under it.
    followed.observe([np.full(1, 0.9, np.float32)])
    assert followed.thresholds[0] == pytest.approx(0.3048, abs=0.0005)


@pytest.mark.parametrize(
    ("rates", "thresholds"), [((1.0, 1.0, 0.0), (math.inf, 0.25)), ((1.0, 0.0, 0.0), (0.0, 0.5))]
)
def test_where_all_or_none_are_escalated_thresholds_stay(
    rates: tuple[float, ...], thresholds: tuple[float, ...]
) -> None:
    followed = RateTracker(rates, thresholds, [LEVELS] * 2)
    reached(followed, stream(3, np.square), 500)
    assert followed.thresholds == thresholds


def test_equal_scores_are_escalated_together_or_not_at_all() -> None:
    """Half of all images have the largest score there is: no threshold escalates 80%."""
    (scores,) = stream(2, np.square)
    scores = np.minimum(scores * 2, 1)
    followed = RateTracker([1.0, 0.8], [1.0], [np.minimum(np.array(LEVELS) * 2, 1).tolist()])
    found = reached(followed, [scores], 100)
    assert followed.thresholds == (1.0,)
    assert found[1].tolist() == (scores < 1).tolist()


@pytest.mark.parametrize(
    ("scores", "validated", "drift", "drifted"),
    [
        ([], 1000, 0.0, False),
        ([0.5] * BLOCK, 1000, 15 / 32, True),
        ([0.5] * BLOCK, 10, 15 / 32, False),
        ([-1.0] * BLOCK, 1000, 1.0, True),
        ([2.0] * 3 * BLOCK, 1000, 1.0, True),
        (np.linspace(0, 1, 3 * BLOCK), 1000, 0.0, False),
        ([0.0] * 2000 + np.linspace(0, 1, 1024).tolist(), 1000, 0.0, False),
    ],
)
def test_drift_is_the_distance_of_recent_scores(
    scores: Sequence[float], validated: int, drift: float, drifted: bool
) -> None:
    followed = tracker(1.0, 0.5, validated=validated)
    followed.observe([np.array(scores, np.float32)])
    assert followed.drift == pytest.approx(drift, abs=0.025)
    assert followed.drifted is drifted


def test_images_as_validated_have_not_drifted() -> None:
    """Ties count on neither side: half of all scores are equal."""
    quantiles = np.minimum(np.array(LEVELS) * 2, 1)
    followed = RateTracker([1.0, 0.2], [0.4], [quantiles.tolist()])
    (scores,) = stream(2, np.square)
    for start in range(0, BEFORE, 50):
        followed.observe([np.minimum(scores[start : start + 50] * 2, 1)])
        assert not followed.drifted
    followed.observe([np.minimum(scores[BEFORE:] * 2, 1)])
    assert followed.drifted


def test_threads_lose_no_images() -> None:
    followed = tracker(1.0, 0.3, 0.1)
    scores = stream(3, np.square)

    def answer() -> None:
        for start in range(BEFORE, BEFORE + 3000, 100):
            reached(followed, [each[start : start + 100] for each in scores], 100)

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert followed.images == 12_000
    assert followed.thresholds == pytest.approx((0.3**2, (1 / 3) ** 2), abs=0.04)


@pytest.mark.parametrize(
    ("rates", "thresholds", "quantiles", "validated", "message"),
    [
        ([1.0], [], [], 10, "1 rates, 0 thresholds and quantiles of 0 members do not fit"),
        ([1.0, 0.5], [0.5, 0.5], [LEVELS], 10, "2 rates, 2 thresholds"),
        ([1.0, 0.5], [0.5], [LEVELS] * 2, 10, "quantiles of 2 members"),
        ([0.9, 0.5], [0.5], [LEVELS], 10, r"rates \[0.9, 0.5\] are not those of a chain"),
        ([1.0, 1.5], [0.5], [LEVELS], 10, "are not those of a chain"),
        ([1.0, -0.1], [0.5], [LEVELS], 10, "are not those of a chain"),
        ([1.0, math.nan], [0.5], [LEVELS], 10, "are not those of a chain"),
        ([1.0, 0.5], [0.5], [[1.0, 0.0]], 10, r"quantiles \[1.0, 0.0\] are no quantiles"),
        ([1.0, 0.5], [0.5], [[1.0]], 10, "are no quantiles"),
        ([1.0, 0.5], [0.5], [[0.0, math.nan]], 10, "are no quantiles"),
        ([1.0, 0.5], [0.5], [[0.0, math.inf]], 10, "are no quantiles"),
        ([1.0, 0.5], [math.nan], [LEVELS], 10, "threshold nan does not fit"),
        ([1.0, 0.5], [math.inf], [LEVELS], 10, "threshold inf does not fit"),
        ([1.0, 0.5], [0.5], [LEVELS], 0, "validated 0 is out of range"),
    ],
)
def test_what_is_of_no_chain(
    rates: list[float],
    thresholds: list[float],
    quantiles: list[list[float]],
    validated: int,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        RateTracker(rates, thresholds, quantiles, validated)
