"""Which members of a cascade meet which budget."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fracskip.checkpoint import load
from fracskip.config import Recipe
from fracskip.cost import account
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.evaluation import predict
from fracskip.operating import OperatingPoints
from fracskip.training import cascade, train
from fracskip.training.cascade import Member, best_cascade, combined, threshold, where_it_pays

COUNT = 400


def members() -> list[Member]:
    """Dearer ones are right more often, and confident where they are right."""
    draw = np.random.default_rng(0)
    hardness = draw.random(COUNT)
    found = []
    for budget in np.geomspace(0.01, 0.08, 7):
        skill = 0.5 + 2.5 * (budget - 0.01)
        right = hardness < 0.4 + skill / 2
        confidence = np.clip(1.1 - hardness / (1 + skill), 0, 1) * draw.uniform(0.9, 1, COUNT)
        cost = budget * draw.uniform(0.8, 1.2, COUNT)
        found.append(Member(float(budget), cost, confidence.astype(np.float32), right))
    return found


@pytest.mark.parametrize("budget", [0.02, 0.03, 0.05])
def test_the_threshold_spends_the_budget(budget: float) -> None:
    first, *_, second = members()
    again = first.confidence < threshold(first, second, budget)
    spent = first.cost.mean() + (again * second.cost).mean()
    assert spent <= budget
    assert spent + second.cost.max() / COUNT > budget


def test_thresholds_at_the_ends() -> None:
    first, *_, second = members()
    none = threshold(first, second, first.budget * 0.9)
    assert none == first.confidence.min()
    assert not (first.confidence < none).any()
    assert threshold(first, second, 1.0) == 1.0


def test_a_cascade_has_a_row_for_every_member() -> None:
    every = members()
    gains, points = combined(every, 2, 1)
    assert [point[0] for point in points] == [each.budget for each in every]
    assert points[3][1:3] == (every[1].budget, every[4].budget)
    assert points[0][1:3] == (every[0].budget, every[1].budget)
    assert points[-1][1:3] == (every[4].budget, every[6].budget)
    parts = []
    for own, (_, first, second, least) in zip(every, points, strict=True):
        one = next(each for each in every if each.budget == first)
        two = next(each for each in every if each.budget == second)
        again = one.confidence < least
        parts.append(np.where(again, two.right, one.right) - own.right.astype(float))
        assert one.cost.mean() + (again * two.cost).mean() <= max(own.budget, one.cost.mean())
    np.testing.assert_array_equal(gains, parts)


def test_small_budgets_get_one_member_where_two_are_worse() -> None:
    every = members()
    _, points = combined(every, 2, 2)
    lowest, start = every[0].budget, every[3].budget
    gains = np.array([[1, 0], [-1, -1], [0, -1], [1, 1], [0, 0], [0, -1], [1, 1]], np.float64)
    gained, chosen = where_it_pays(gains, points)
    np.testing.assert_allclose(gained, np.array([2, 1]) / 7)
    assert chosen[2:] == points[3:]
    rows = operated(chosen)
    for budget in np.geomspace(lowest, start * 0.999, 9):
        first, second, least = rows.members_at(np.array([budget], np.float32))
        assert first == second == pytest.approx(budget, rel=1e-6)
        assert least == 0.0
    *_, least = rows.members_at(np.array([start], np.float32))
    assert least == pytest.approx(points[3][3], rel=0.01)


def test_all_budgets_get_two_members_where_they_gain_by_it() -> None:
    _, points = combined(members(), 1, 1)
    gains = np.ones((len(points), 2))
    gained, chosen = where_it_pays(gains, points)
    assert chosen == points
    np.testing.assert_array_equal(gained, [1, 1])


def noise(net: DynamicNetwork) -> ImageSet:
    draw = np.random.default_rng(5)
    size = net.spec.image
    pixels = draw.integers(0, 256, (96, *size.size, size.channels), dtype=np.uint8)
    labels = predict(net, pixels, budget=0.5).predicted  # of the dearest member
    return ImageSet(pixels, labels, net.spec.class_names, "noise", "test", "numpy")


CURVE = ((0.02, 6.0), (0.1, 0.0), (0.5, -6.0))


def operated(rows: tuple[tuple[float, float, float, float], ...]) -> OperatingPoints:
    """A cascade on some curve that holds its members."""
    curve = ((rows[0][0], 1.0), (rows[-1][0], 0.0))
    return OperatingPoints(target=rows[-1][0], multiplier_curve=curve, cascade=rows)


def test_a_network_gets_the_best_of_them(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net(multiplier_curve=CURVE, target=0.1)
    data = noise(net)
    before = net.operating_points
    points, gained = best_cascade(net, data)
    assert gained > 0
    assert net.operating_points == before  # found, not set
    net.operating_points = before.changed(cascade=points)
    assert points[0][0] == CURVE[0][0]
    assert points[-1][0] == CURVE[-1][0]
    again = [
        (found.escalated.mean(), account(found.executions, net.options, net.profile))
        for found in (predict(net, data.images, budget=point[0]) for point in points)
    ]
    assert max(share for share, _ in again) > 0.05
    assert [cost.cp for _, cost in again] == sorted(cost.cp for _, cost in again)


def test_there_is_one_member_where_a_second_gains_nothing(
    make_net: Callable[..., DynamicNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net(
        multiplier_curve=CURVE, target=0.1, cascade=((0.02, 0.02, 0.1, 0.0), (0.5, 0.1, 0.5, 1.0))
    )
    same = members()[0]
    monkeypatch.setattr(cascade, "member_at", lambda *_: same)
    assert best_cascade(net, noise(net)) == ((), 0.0)


def test_a_target_out_of_reach_keeps_one_member(make_net: Callable[..., DynamicNetwork]) -> None:
    net = make_net(multiplier_curve=CURVE, target=0.01)
    assert best_cascade(net, noise(net)) == ((), 0.0)


@pytest.mark.parametrize("gained", [True, False])
def test_a_run_ends_with_what_validation_chose(
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gained: bool,
) -> None:
    if not gained:
        same = members()[0]
        monkeypatch.setattr(cascade, "member_at", lambda *_: same)
    else:
        # However the tiny network fares: the first cascade is taken to be the better one.
        found = cascade.combined
        monkeypatch.setattr(
            cascade, "combined", lambda *given: (np.full((len(given[0]), 9), 2.0), found(*given)[1])
        )
    joint = {"epochs": 1, "target": 0.45, "budgets": [0.05, 0.1, 0.2, 0.4, 0.6], "members": 2}
    train(tiny_recipe(joint=joint, gates={"epochs": 1}, backbone={"epochs": 1}), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    points = load(tmp_path / "run" / "model.safetensors").operating_points
    assert points.multiplier_curve
    assert bool(points.cascade) == gained
    assert summary["operating_points"] == points.model_dump(mode="json")
    assert (summary["cascade_gain"] > 0) == gained
    if gained:
        assert points.range == (points.multiplier_curve[0][0], points.multiplier_curve[-1][0])


@pytest.mark.parametrize("budgets", [[], [0.1], [0.2, 0.4], [0.01, 0.05]])
def test_a_cascade_needs_budgets_around_the_target(
    tiny_recipe: Callable[..., Recipe], budgets: list[float]
) -> None:
    tiny_recipe(joint={"members": 2, "target": 0.1, "budgets": [0.05, 0.2]})
    with pytest.raises(ConfigError, match="members = 2 needs budgets"):
        tiny_recipe(joint={"members": 2, "target": 0.1, "budgets": budgets})


def test_a_gain_within_its_error_is_none(
    make_net: Callable[..., DynamicNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net(multiplier_curve=CURVE, target=0.1)
    gained = np.zeros(COUNT)
    gained[:2] = 2e-3, -1e-3
    monkeypatch.setattr(cascade, "member_at", lambda *_: members()[0])
    monkeypatch.setattr(cascade, "combined", lambda every, under, over: (gained[None], ()))
    assert best_cascade(net, noise(net)) == ((), 0.0)


@pytest.mark.parametrize("between", [0.25, 0.5, 0.75])
def test_between_rows_the_cost_is_near_what_is_asked(between: float) -> None:
    every = members()
    _, points = combined(every, 1, 2)
    rows = operated(points)
    for low, high in itertools.pairwise(every):
        budget = low.budget ** (1 - between) * high.budget**between
        *asked, least = rows.members_at(np.array([budget], np.float32))
        # Costs and confidences between two members, as the synthetic ones lie.
        first, second = (_interpolated(every, float(each[0])) for each in asked)
        spent = first.cost.mean() + ((first.confidence < least) * second.cost).mean()
        assert spent == pytest.approx(budget, rel=0.15)


def _interpolated(every: list[Member], budget: float) -> Member:
    budgets = np.log([each.budget for each in every])
    place = np.interp(np.log(budget), budgets, np.arange(len(every)))
    low, high = every[int(np.floor(place))], every[int(np.ceil(place))]
    share = place % 1
    cost, confidence = (
        (1 - share) * getattr(low, key) + share * getattr(high, key)
        for key in ("cost", "confidence")
    )
    return Member(budget, cost, confidence, low.right)
