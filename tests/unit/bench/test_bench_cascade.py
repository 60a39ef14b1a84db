"""Cascades as contenders: operating points, and each member by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fracskip.bench.contender import Contender
from fracskip.bench.native import native_contenders
from fracskip.bench.subject import Images
from fracskip.config import ImageConfig
from fracskip.data import ImageSet
from fracskip.runtime import engines
from fracskip.runtime.cascade_bundle import CascadeBundle, cascade_of, write_cascade
from support.small_cascades import member, networks, points, small_cascade
from support.stand_in_engine import StandInEngine

SCORES = (0.1, 0.6, 0.7, 0.95)  # of four images, by the engine that stands in


@pytest.fixture
def contenders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[CascadeBundle], list[Contender]]:
    monkeypatch.setattr(engines, "build_portable", StandInEngine)

    def made(bundle: CascadeBundle) -> list[Contender]:
        write_cascade(tmp_path / "x.fsk", bundle)
        pixels = np.zeros((len(SCORES), *bundle.plan.image.size, 3), np.uint8)
        pixels[:] = np.array([round(255 * score) for score in SCORES])[:, None, None, None]
        names = bundle.plan.class_names
        test = ImageSet(pixels, np.zeros(len(SCORES), np.int64), names, "a", "test", "")
        images = Images(test, ImageConfig(size=bundle.plan.image.size), pixels)
        return native_contenders(tmp_path / "x.fsk", images, engine="portable", threads=1, cores=2)

    return made


def answers(one: Contender) -> list[tuple[int, float]]:
    """Of each image: the member that answers, and the microseconds that the engine tells."""
    found = []
    assert one.own_latency_us is not None
    for image in one.inputs:
        found.append((int(one.run(image).argmax()), one.own_latency_us()))
    return found


def test_points_from_the_largest_budget_down_then_members(
    contenders: Callable[[CascadeBundle], list[Contender]],
) -> None:
    found = contenders(small_cascade())
    assert {one.engine for one in found} == {"portable"}
    assert {one.precision for one in found} == {"int8"}
    # Between budget 0.5, the cheapest chain's, and 0.25 there is member 0 alone, which is one row.
    assert [(one.name, one.role, one.network) for one in found] == [
        ("portable 0 > 1 at budget 0.75", "dynamic", "0 > 1 at budget 0.75"),
        ("portable 0 > 1 at budget 0.602", "dynamic", "0 > 1 at budget 0.602"),
        ("portable member 1: random basic 16x16 alone", "member", "random basic 16x16 alone"),
        ("portable member 0: random basic 12x12 alone", "member", "random basic 12x12 alone"),
    ]
    largest, smaller, last, first = found
    assert largest.settings == {
        "isa": "none",
        "threads": 1,
        "input": "uint8 pixels",
        "chain": [0, 1],
        "thresholds": [0.9],
        "rates": [1.0, 0.5],
        "cost": 0.75,
        "budget": 0.75,
    }
    share = (0.75 * 3 ** (-1 / 5) - 0.5) / 0.25
    assert smaller.settings["thresholds"] == [pytest.approx(0.5 + 0.4 * share)]
    assert smaller.settings["cost"] == pytest.approx(smaller.settings["budget"])
    assert (last.settings["chain"], last.settings["cost"], last.settings["budget"]) == (
        [1],
        1.0,
        None,
    )
    assert answers(largest) == [(1, 30), (1, 30), (1, 30), (0, 10)]
    assert answers(smaller) == [(1, 30), (1, 30), (0, 10), (0, 10)]
    assert answers(last) == [(1, 20)] * 4
    assert answers(first) == [(0, 10)] * 4
    for one in found:
        assert (one.option, one.cp) == (None, None)
        (load,) = one.loads()
        assert load.how == "batch of 4, 2 threads"
        assert load.run() == 4


def test_members_with_gates_and_budgets(
    contenders: Callable[[CascadeBundle], list[Contender]],
) -> None:
    gated, static = (
        networks((16, 16), options=("skip", 8), budget_input=True)[0],
        networks((16, 16))[0],
    )
    shares = ((0.5, 0.5),) * len(gated.plan.gated)
    members = [
        member(0, 1e6, budget=0.25, shares=shares),
        member(0, 2e6, budget=0.5, shares=shares),
        member(1, 4e6),
    ]
    found = contenders(cascade_of([gated, static], points(members)))
    assert [one.name for one in found if one.role == "member"] == [
        "portable member 2: random basic 16x16 alone",
        "portable member 1: random basic 16x16 at budget 0.5 alone",
        "portable member 0: random basic 16x16 at budget 0.25 alone",
    ]
    assert [one.precision for one in found if one.role == "member"] == ["int8", "mixed", "mixed"]
    assert {one.precision for one in found if one.role == "dynamic"} == {"mixed"}


def test_where_no_chain_pays_members_are_left(
    contenders: Callable[[CascadeBundle], list[Contender]],
) -> None:
    members = [member(0, 1e6), member(1, 4e6, correct=990)]
    tree = points(members)
    alone = tuple(point for point in tree.points if len(point.chain) == 1)
    found = contenders(
        cascade_of(networks((12, 12), (16, 16)), tree.model_copy(update={"points": alone}))
    )
    assert [one.role for one in found] == ["member", "member"]
