"""Rounds, statistics and ratios, with contenders that take no time to speak of."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fracskip.bench import timing
from fracskip.bench.contender import Contender, Load
from fracskip.bench.timing import Samples, measure, ratio, throughput


def contender(name: str, run: Callable[[Any], Any] | None = None, **changes: Any) -> Contender:
    def echo(given: int) -> Any:
        return np.eye(10, dtype=np.float32)[[given % 10]]

    return Contender(
        name=name,
        engine=name,
        precision="fp32",
        role="backbone",
        network="none",
        inputs=range(100),
        run=run or echo,
        **changes,
    )


def samples(wall: Any, disturbed: Any = None, rounds: int = 2) -> Samples:
    wall = np.asarray(wall, dtype=float)
    taken = np.zeros(len(wall), dtype=bool) if disturbed is None else np.asarray(disturbed)
    return Samples(wall, wall * 2, None, taken, np.zeros(len(wall), dtype=np.int64), rounds)


def test_every_image_is_classified_once_by_everyone() -> None:
    advanced: list[int] = []
    found = measure([contender("a"), contender("b")], 23, 4, progress=advanced.append)
    for name in ("a", "b"):
        assert found[name].predicted.tolist() == [index % 10 for index in range(23)]
        assert (found[name].wall_us > 0).all()
        assert found[name].own_us is None
    assert sum(advanced) == 2 * 23


def test_within_a_round_everyone_works_on_the_same_images_in_a_drawn_order() -> None:
    calls: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[[int], Any]:
        def run(given: int) -> Any:
            calls.append((name, given))
            return np.zeros((1, 3))

        return run

    measure([contender(name, noting(name)) for name in "abc"], 12, 3)
    turns: list[tuple[str, list[int]]] = []
    for name, given in calls:
        if not turns or turns[-1][0] != name or len(turns[-1][1]) == timing.WARM_UP + 4:
            turns.append((name, []))
        turns[-1][1].append(given)
    assert [len(given) for _, given in turns] == [timing.WARM_UP + 4] * 9
    for turn in range(3):
        of_round = turns[3 * turn : 3 * turn + 3]
        assert {name for name, _ in of_round} == set("abc")
        for _, given in of_round:
            assert given[timing.WARM_UP :] == list(range(turn, 12, 3))
    orders = {tuple(name for name, _ in turns[3 * turn : 3 * turn + 3]) for turn in range(3)}
    assert len(orders) > 1, "the order is drawn anew for each round"


def test_own_times_are_asked_for_after_each_run() -> None:
    last = [0.0]

    def run(given: int) -> Any:
        last[0] = float(given)
        return np.zeros((1, 3))

    found = measure([contender("a", run, own_latency_us=lambda: last[0])], 8, 2)
    own = found["a"].own_us
    assert own is not None
    assert own.tolist() == list(range(8))


def test_disturbed_samples_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(1000))
    monkeypatch.setattr(timing, "interruptions", lambda: next(count) // 5)
    found = measure([contender("a")], 20, 2)["a"]
    assert 0 < found.disturbed.sum() < 20


def test_statistics_of_the_calm() -> None:
    found = samples([1, 2, 900, 4], [False, False, True, False])
    stats = found.statistics(found.wall_us)
    assert stats["mean"] == pytest.approx(7 / 3)
    assert stats["p50"] == 2
    assert stats["round_means"] == [1, 3], "round 0 has the images 0 and 2"
    assert found.statistics(found.cpu_us, calm=False)["mean"] == pytest.approx(2 * 907 / 4)


def test_where_nearly_all_is_disturbed_all_counts() -> None:
    found = samples([1, 2, 3, 4, 5], [True, True, True, True, False], rounds=1)
    assert found.statistics(found.wall_us)["mean"] == 3


def test_ratios_are_taken_within_rounds() -> None:
    # The second round was ten times as slow for both.
    slow, fast = samples([4, 40, 4, 60]), samples([2, 20, 2, 20])
    assert slow.is_calm
    assert ratio(slow, fast)["wall"] == {"median": 2.25, "lowest": 2.0, "highest": 2.5}
    assert ratio(slow, fast)["cpu"] == ratio(slow, fast)["wall"]


def test_no_ratio_of_wall_times_where_one_was_interrupted_too_often() -> None:
    calm = samples([2, 20, 2, 20, 2, 20])
    # Two of the second round's three.
    busy = samples([4, 40, 4, 60, 4, 50], [False, True, False, True, False, False])
    assert not busy.is_calm
    for pair in ((busy, calm), (calm, busy)):
        found = ratio(*pair)
        assert found["wall"] is None
        assert found["cpu"] is not None


def test_throughput_takes_the_best_load(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]

    def load(how: str, images: int, nanoseconds: int) -> Load:
        def run() -> int:
            clock[0] += nanoseconds
            return images

        return Load(how, run)

    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: clock[0])
    one = contender("a", loads=lambda: [load("slow", 1, 1000), load("fast", 3, 1000)])
    rates = throughput([one, contender("without")], turns=3)
    assert rates == {"a": {"images_per_second": pytest.approx(3e6), "how": "fast"}}


def test_pythons_collector_is_kept_out_and_comes_back() -> None:
    states = []

    def run(given: int) -> Any:
        states.append(gc.isenabled())
        return np.zeros((1, 2))

    assert gc.isenabled()
    measure([contender("a", run)], 2, 1)
    assert gc.isenabled()
    assert not any(states)
