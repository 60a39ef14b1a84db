"""A drop in accuracy that is promised: p-values against every outcome, choice, images needed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fracskip.errors import ConfigError
from fracskip.operating.promise import cheapest, images_needed, p_value


def chances(images: int, better: float, worse: float) -> dict[tuple[int, int], float]:
    """Of all numbers of better and worse images."""
    found = {}
    for one in range(images + 1):
        for other in range(images + 1 - one):
            rest = images - one - other
            ways = math.comb(images, one) * math.comb(images - one, other)
            found[one, other] = ways * better**one * worse**other * (1 - better - worse) ** rest
    return found


@pytest.mark.parametrize(
    ("images", "max_drop", "least"),
    [(24, 0.0, 0.9), (20, 0.05, 0.9), (16, 0.15, 0.9), (14, 0.6, 0.9)],
)
def test_p_values_are_as_small_as_chance_allows(images: int, max_drop: float, least: float) -> None:
    """Under the hypothesis a p-value is at most `a` with a chance of at most `a`, over all
    outcomes; at its edge that chance nearly comes to `a`."""
    values = {each: p_value(images, *each, max_drop) for each in chances(images, 0.1, 0.1)}
    found = []
    for excess in (0.0, 0.03):
        for share in np.linspace(max_drop + excess, 1, 40):
            better, worse = (share - max_drop - excess) / 2, (share + max_drop + excess) / 2
            of = chances(images, better, worse)
            for level in (0.01, 0.05, 0.1, 0.2, *{value for value in values.values() if value < 1}):
                size = sum(of[each] for each, value in values.items() if value <= level)
                assert size <= level * (1 + 1e-9)
                found.append(size / level)
    assert max(found) > least


@pytest.mark.parametrize(
    ("images", "better", "worse", "max_drop", "right"),
    [
        (3, 3, 0, 0.0, 1 / 8),  # Likeliest if all differ, by the toss of a coin.
        (1, 0, 0, 0.25, 3 / 4),  # The image is not worse.
        (10, 2, 3, 0.05, 1.0),  # The estimate is larger than allowed.
        (10, 0, 0, 0.0, 1.0),
        (5000, 100, 100, 0.005, 0.0395),  # The normal approximation gives 0.0385.
        (10000, 30, 20, 0.005, 1e-6),
    ],
)
def test_p_values_of_some_outcomes(
    images: int, better: int, worse: int, max_drop: float, right: float
) -> None:
    assert p_value(images, better, worse, max_drop) == pytest.approx(right, rel=0.03, abs=1e-6)


def test_p_values_take_little_time_and_memory_for_many_images() -> None:
    """A promise that a million images keep: the drop is 0.3%, 0.32% is allowed."""
    assert p_value(1_000_000, 20_000, 23_000, 0.0032) == pytest.approx(0.1668, rel=0.03)


POINTS = [(4000, 60, 55), (4000, 70, 72), (4000, 80, 81), (4000, 80, 110), (4000, 90, 90)]


@pytest.mark.parametrize(
    ("points", "max_drop", "confidence", "right"),
    [
        (POINTS, 0.01, 0.95, 2),  # The fourth fails, so that the fifth is not tested.
        (POINTS, 0.01, 0.5, 4),
        (POINTS, 0.03, 0.95, 4),
        (POINTS, 0.005, 0.95, 0),
        (POINTS, 0.0, 0.95, None),
        ([], 0.01, 0.95, None),
    ],
)
def test_the_cheapest_point_is_the_last_before_one_fails(
    points: list[tuple[int, int, int]], max_drop: float, confidence: float, right: int | None
) -> None:
    assert cheapest(points, max_drop, confidence) == right


def test_promises_are_broken_no_more_often_than_said() -> None:
    """100 draws of validation images for nine points whose drops are known, from 0 to 4%."""
    max_drop, images = 0.02, 500
    drops = np.linspace(0.0, 0.04, 9)
    draw = np.random.default_rng(5)
    broken = 0
    for _ in range(100):
        # 0 is better, 1 worse at all points, 2 at all but the first, and so on, as in a cascade.
        kind = np.searchsorted([0.01, *(0.02 + drops)], draw.random(images))
        better = int((kind == 0).sum())
        worse = [int(((kind >= 1) & (kind <= last)).sum()) for last in range(1, len(drops) + 1)]
        chosen = cheapest([(images, better, each) for each in worse], max_drop, 0.9)
        broken += chosen is not None and drops[chosen] > max_drop
    assert 1 <= broken <= 16  # Of 100 a true 10% allows no more.


@pytest.mark.parametrize(
    ("counts", "max_drop", "right"),
    [
        ((1000, 0, 0), 0.005, 598),  # log 0.05 / log 0.995
        ((5000, 100, 100), 0.005, 4800),
        ((5, 1, 0), 0.0, 20),  # Four better and none worse; a conditional test needs five.
        ((5000, 100, 125), 0.005, None),  # The estimate is what is allowed.
        ((5000, 499, 523), 0.005, None),  # More than a million.
        ((4, 0, 4), 0.5, None),
    ],
)
def test_how_many_images_let_a_point_pass(
    counts: tuple[int, int, int], max_drop: float, right: int | None
) -> None:
    found = images_needed(*counts, max_drop, 0.95)
    assert found == (right if right is None else pytest.approx(right, rel=0.02))


@pytest.mark.parametrize(
    ("counts", "max_drop", "confidence", "message"),
    [
        ((0, 0, 0), 0.01, 0.95, "0 better and 0 worse of 0 images do not fit"),
        ((10, 6, 5), 0.01, 0.95, "6 better and 5 worse of 10 images do not fit"),
        ((10, -1, 5), 0.01, 0.95, "-1 better and 5 worse of 10 images do not fit"),
        ((10, 1, 1), 1.0, 0.95, "max_drop 1.0 is out of range"),
        ((10, 1, 1), -0.1, 0.95, "max_drop -0.1 is out of range"),
        ((10, 1, 1), math.nan, 0.95, "max_drop nan is out of range"),
        ((10, 1, 1), 0.1, 1.0, "confidence 1.0 is out of range"),
        ((10, 1, 1), 0.1, 0.0, "confidence 0.0 is out of range"),
        ((10, 1, 1), 0.1, math.nan, "confidence nan is out of range"),
    ],
)
def test_what_can_be_promised_by_nothing(
    counts: tuple[int, int, int], max_drop: float, confidence: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cheapest([counts], max_drop, confidence)
    with pytest.raises(ConfigError, match=message):
        images_needed(*counts, max_drop, confidence)
