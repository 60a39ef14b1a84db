"""Operating points of cascades: which pay, which a caller gets, what is refused."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from fracskip.errors import ConfigError
from fracskip.operating.calibration import RATES, MemberOutputs, choose_points, temperature
from fracskip.operating.cascade import CascadePoint, CascadePoints, Member
from fracskip.operating.scores import answers_of, score_of

IMAGES = 3000


def members(*bitops: float) -> tuple[Member, ...]:
    return tuple(
        Member(
            network=index,
            budget=None,
            temperature=1.0,
            bitops=each,
            correct=0,
            shares=(),
            quantiles=(0.0, 1.0),
        )
        for index, each in enumerate(bitops)
    )


def point(
    chain: tuple[int, ...], rate: float, correct: int, *against: tuple[int, int]
) -> CascadePoint:
    later = len(chain) - 1
    return CascadePoint(
        chain=chain,
        thresholds=(rate,) * later,
        rates=(1.0, *(rate,) * later),
        quantiles=((0.0, 1.0),) * max(later - 1, 0),
        correct=correct,
        against=against,
    )


# A small member right on 900 of 1,000 images, a large one on 930, and chains of both.
TWO = CascadePoints(
    members=members(1.0, 4.0),
    score="probability",
    averaged=False,
    images=1000,
    points=(
        point((0,), 0, 900, (0, 0), (20, 50)),
        point((1,), 0, 930, (50, 20), (0, 0)),
        point((0, 1), 0.5, 934, (44, 10), (10, 6)),
        point((0, 1), 0.25, 932, (40, 8), (12, 10)),
        point((0, 1), 0.1, 915, (18, 3), (15, 30)),
        point((0, 1), 0.01, 901, (2, 1), (20, 49)),
    ),
)


def test_costs_are_sums_over_the_members_that_images_reach() -> None:
    assert TWO.costs((100.0, 400.0)).tolist() == [100, 400, 300, 200, 140, 104]
    assert TWO.bitops == (0.25, 1.0)


def test_points_pay_that_beat_every_cheaper_member_by_more_than_a_standard_error() -> None:
    """At 0.01, 2 images are right and 1 is wrong that were not: sqrt(3 - 1/1000) > 1."""
    chains = [TWO.points[i].rates[1:] for i in TWO.frontier((100.0, 400.0))]
    assert chains == [(), (0.1,), (0.25,), (0.5,)]  # and the large one is less accurate for more


@pytest.mark.parametrize(
    ("limit", "rate", "cost"),
    [
        (100.0, None, 100),
        (139.0, None, 100),  # between two chains nothing is interpolated
        (140.0, 0.1, 140),
        (170.0, 0.175, 170),  # between two points of one chain it is
        (250.0, 0.375, 250),
        (1e9, 0.5, 300),
    ],
)
def test_a_limit_gets_the_most_accurate_point_within_it(
    limit: float, rate: float | None, cost: float
) -> None:
    found = TWO.at_cost(limit, (100.0, 400.0), "{} us")
    assert found.cost == pytest.approx(cost)
    assert found.rates[1:] == (() if rate is None else (pytest.approx(rate),))
    assert found.thresholds == found.rates[1:]


def test_a_limit_out_of_reach_says_the_range() -> None:
    with pytest.raises(
        ConfigError, match=r"a mean latency of 99 us is out of .* give 100 at least"
    ):
        TWO.at_cost(99.0, (100.0, 400.0), "a mean latency of {} us")
    with pytest.raises(ConfigError, match="no member answers within 50"):
        TWO.at_cost(math.inf, (100.0, 400.0), "", 50.0, (110.0, 420.0))


def test_no_image_may_pass_a_bound() -> None:
    """A chain of both may take 530 us for an escalated image; the large one alone takes 420."""
    tight = TWO.at_cost(math.inf, (100.0, 400.0), "", 500.0, (110.0, 420.0))
    assert tight.chain == (0,)  # the large one is not on the frontier: chains beat it
    loose = TWO.at_cost(math.inf, (100.0, 400.0), "", 530.0, (110.0, 420.0))
    assert loose.chain == (0, 1)


def test_a_promise_is_the_cheapest_point_that_is_surely_kept() -> None:
    """4 better and 2 points lost at worst: at 0.25, 12 better and 10 worse of 1,000."""
    assert TWO.promised(0.02, 0.95, TWO.bitops).rates == (1.0, 0.25)
    with pytest.raises(
        ConfigError, match=r"no point cheaper .* max_drop=0.001 .* in place of 1,000"
    ):
        TWO.promised(0.001, 0.95, TWO.bitops)


@pytest.mark.parametrize("value", [0, 1, -0.1, math.nan, True, "0.01"])
def test_a_promise_is_a_share(value: object) -> None:
    with pytest.raises(ConfigError, match=r"max_drop .* is out of range: give a share"):
        TWO.promised(value, 0.95, TWO.bitops)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain": (1, 0)}, "must ascend"),
        ({"chain": (0, 0)}, "must ascend"),
        ({"thresholds": ()}, "a threshold between two members"),
        ({"rates": (1.0, 0.1, 0.1)}, "a rate each"),
        ({"rates": (0.9, 0.1)}, "begin with 1"),
        ({"thresholds": (math.nan,)}, "finite number"),
        ({"chain": (0, 2)}, "a point is not of 2 members"),
        ({"against": ((0, 0),)}, "a point is not of 2 members"),
        ({"correct": 1001}, "counts more images"),
        ({"against": ((600, 600), (0, 0))}, "counts more images"),
    ],
)
def test_impossible_points_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {**dict(TWO.points[2]), **changes}
    with pytest.raises(ValidationError, match=message):
        CascadePoints(**{**dict(TWO), "points": (*TWO.points[:2], fields)})


def test_each_member_alone_must_be_a_point() -> None:
    with pytest.raises(ValidationError, match="each member alone must be a point"):
        CascadePoints(**{**dict(TWO), "points": TWO.points[1:]})


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("probability", 0.5),
        ("margin", 0.25),
        ("entropy", 1 - 1.5 * math.log(2) / math.log(3)),
    ],
)
def test_scores_are_those_of_the_softmax(score: str, expected: float) -> None:
    """Probabilities 1/2, 1/4, 1/4; entropy 1.5 bits."""
    found = score_of(np.log(np.array([[0.5, 0.25, 0.25]], np.float32)) + 7, score)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(expected, abs=1e-6)


def test_averaged_answers_are_means_over_temperatures() -> None:
    logits = [np.array([[2.0, 0.0]]), np.array([[0.0, 6.0]]), np.array([[9.0, 0.0]])]
    averaged = answers_of(logits, [1.0, 2.0, 3.0], True)
    np.testing.assert_allclose(np.concatenate(averaged), [[2, 0], [1, 1.5], [5 / 3, 1]], rtol=1e-6)
    alone = answers_of(logits, [1.0, 2.0, 3.0], False)
    np.testing.assert_allclose(np.concatenate(alone), [[2, 0], [0, 3], [3, 0]], rtol=1e-6)


def answers(seed: int = 0) -> tuple[list[MemberOutputs], np.ndarray]:
    """Three members, each a noisy view of the classes, dearer ones less noisy."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, IMAGES)
    truth = 4.0 * np.eye(10)[labels] + rng.normal(size=(IMAGES, 10))
    found = []
    for number, (noise, bitops) in enumerate([(1.8, 1e6), (1.2, 3e6), (0.5, 9e6)]):
        logits = (truth + noise * rng.normal(size=truth.shape)).astype(np.float32)
        found.append(MemberOutputs(number, None, logits, bitops, ()))
    return found, labels


def test_points_are_counted_on_images_that_chose_nothing() -> None:
    given, labels = answers()
    points = choose_points(given, labels)
    assert points.images == IMAGES - IMAGES // 3
    chains = {p.chain for p in points.points}
    assert chains == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    chosen = np.zeros(IMAGES, bool)
    chosen[np.argsort(np.random.PCG64(0).random_raw(IMAGES), kind="stable")[: IMAGES // 3]] = True
    for one in points.points:
        said = answers_of(
            [given[m].logits for m in one.chain],
            [points.members[m].temperature for m in one.chain],
            points.averaged,
        )
        answer = said[0].argmax(1)
        reached = np.ones(IMAGES, bool)
        for k, threshold in enumerate(one.thresholds):
            reached &= score_of(said[k], points.score) < np.float32(threshold)
            assert one.rates[k + 1] == pytest.approx(reached.mean())
            answer = np.where(reached, said[k + 1].argmax(1), answer)
        right = (answer == labels)[~chosen]
        assert one.correct == right.sum()
        for (better, worse), other in zip(one.against, given, strict=True):
            alone = (other.logits.argmax(1) == labels)[~chosen]
            assert (better, worse) == ((right & ~alone).sum(), (alone & ~right).sum())
    escalated = [p.rates[1] for p in points.points if p.chain == (0, 2)]
    assert np.abs(np.array(escalated) - RATES).max() < 0.05


def test_labels_of_counted_images_change_no_threshold() -> None:
    """Whatever is counted is only counted: permuted labels there give the same points."""
    given, labels = answers()
    chosen = np.argsort(np.random.PCG64(0).random_raw(IMAGES), kind="stable")[: IMAGES // 3]
    others = np.setdiff1d(np.arange(IMAGES), chosen)
    moved = labels.copy()
    moved[others] = np.random.default_rng(1).permutation(labels[others])
    one, two = choose_points(given, labels), choose_points(given, moved)
    assert one.score == two.score
    assert [(p.chain, p.thresholds, p.rates) for p in one.points] == [
        (p.chain, p.thresholds, p.rates) for p in two.points
    ]
    assert [m.temperature for m in one.members] == [m.temperature for m in two.members]


def test_a_cascade_of_such_members_pays() -> None:
    given, labels = answers()
    points = choose_points(given, labels)
    best = points.at_cost(0.6, points.bitops, "budget {}")
    assert len(best.chain) > 1
    alone = max(m.correct for m in points.members[:2]) / points.images
    assert best.accuracy > alone + 0.02


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(true: float) -> None:
    """Labels drawn from the softmax at a temperature make that the best one."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (20_000, 5)).astype(np.float32)
    powers = np.exp(logits / true)
    chances = (powers / powers.sum(1, keepdims=True)).cumsum(1)
    labels = (rng.random((len(logits), 1)) > chances).sum(1).clip(0, 4)
    assert temperature(logits, labels) == pytest.approx(true, rel=0.03)
