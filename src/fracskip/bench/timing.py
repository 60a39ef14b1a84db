"""Timing: contenders interleaved in rounds of random order, one image at a time.

Every contender classifies every image once. Round r takes the images r, r + R, r + 2R, ... of R
rounds, and within a round every contender works on the same images, one contender after the other,
in an order drawn anew. So whatever slows the machine for a while slows all alike, and ratios can be
taken within rounds.

A run during which the operating system took the core away (it counts that as an involuntary context
switch) says little about an engine: such samples are marked and left out of the statistics of wall
time, and their share is told. Processor time, which does not run on meanwhile, is kept beside it.
"""

from __future__ import annotations

import gc
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.bench.contender import Contender

WARM_UP = 8
FEWEST_CALM = 0.5
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Samples:
    """What was measured of one contender, one entry an image.

    Attributes:
        wall_us: Time of the call from Python.
        cpu_us: Processor time of the whole process during the call.
        own_us: The engine's own time, or None where it tells none.
        disturbed: Whether the core was taken away meanwhile.
        predicted: The class with the largest logit.
        rounds: Number of rounds; image i belongs to round i % rounds.
    """

    wall_us: NDArray[np.float64]
    cpu_us: NDArray[np.float64]
    own_us: NDArray[np.float64] | None
    disturbed: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    rounds: int

    def calm(self, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """Which samples among `rows` count: the undisturbed, or all where these are too few."""
        calm = ~self.disturbed[rows]
        return calm if calm.mean() >= FEWEST_CALM else np.ones_like(calm)

    @property
    def is_calm(self) -> bool:
        """Whether wall times were left alone in at least half of every round's samples."""
        shares = [1 - self.disturbed[start :: self.rounds].mean() for start in range(self.rounds)]
        return bool(min(shares) >= FEWEST_CALM)

    def statistics(self, times: NDArray[np.float64], *, calm: bool = True) -> dict[str, Any]:
        """Mean, median, 99th percentile, and mean and median of each round.

        Args:
            times: One of this object's.
            calm: Leave out what was disturbed.
        """
        slices = [slice(start, None, self.rounds) for start in range(self.rounds)]
        kept = times[self.calm()] if calm else times
        rounds = [times[rows][self.calm(rows)] if calm else times[rows] for rows in slices]
        p50, p99 = np.percentile(kept, [50, 99])
        return {
            "mean": float(kept.mean()),
            "p50": float(p50),
            "p99": float(p99),
            "round_means": [float(values.mean()) for values in rounds],
            "round_medians": [float(np.median(values)) for values in rounds],
        }


def interruptions() -> int:
    """How often this process has lost a core so far without asking for it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@contextmanager
def undisturbed_by_us() -> Iterator[None]:
    """Keeps Python's collector of garbage out of what is timed."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def measure(
    contenders: Sequence[Contender],
    images: int,
    rounds: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Samples]:
    """Times all contenders on the same images.

    Args:
        contenders: With at least `images` inputs each.
        images: How many images; at least one a round.
        rounds: How many rounds.
        seed: Of the rounds' orders.
        progress: Called with the number of images that were classified.

    Returns:
        By the contenders' names.
    """
    assert images >= rounds >= 1
    draw = random.Random(seed)
    wall = {one.name: np.zeros(images) for one in contenders}
    cpu = {one.name: np.zeros(images) for one in contenders}
    own = {one.name: np.zeros(images) for one in contenders if one.own_latency_us is not None}
    disturbed = {one.name: np.zeros(images, dtype=np.bool_) for one in contenders}
    predicted = {one.name: np.zeros(images, dtype=np.int64) for one in contenders}
    with undisturbed_by_us():
        for turn in range(rounds):
            order = list(contenders)
            draw.shuffle(order)
            rows = range(turn, images, rounds)
            for one in order:
                for row in [index % images for index in range(turn, turn + WARM_UP)]:
                    one.run(one.inputs[row])
                for row in rows:
                    taken = interruptions()
                    given = one.inputs[row]
                    worked = time.process_time_ns()
                    begin = time.perf_counter_ns()
                    logits = one.run(given)
                    wall[one.name][row] = (time.perf_counter_ns() - begin) / 1e3
                    cpu[one.name][row] = (time.process_time_ns() - worked) / 1e3
                    disturbed[one.name][row] = interruptions() != taken
                    predicted[one.name][row] = np.argmax(logits)
                    if one.own_latency_us is not None:
                        own[one.name][row] = one.own_latency_us()
                if progress is not None:
                    progress(len(rows))
    return {
        name: Samples(
            wall[name], cpu[name], own.get(name), disturbed[name], predicted[name], rounds
        )
        for name in wall
    }


def ratio(numerator: Samples, denominator: Samples) -> dict[str, dict[str, float] | None]:
    """How many times as long: ratio of mean times within each round, median and range of them.

    Long calls are interrupted more often than short ones. Where they cannot be told from the calm
    ones, a ratio of wall times would flatter whoever is fast: there is none then.

    Returns:
        By clock: 'wall' and 'cpu'.
    """
    calm = numerator.is_calm and denominator.is_calm
    wall = _spread(
        numerator.statistics(numerator.wall_us), denominator.statistics(denominator.wall_us)
    )
    cpu = _spread(
        numerator.statistics(numerator.cpu_us, calm=False),
        denominator.statistics(denominator.cpu_us, calm=False),
    )
    return {"wall": wall if calm else None, "cpu": cpu}


def _spread(above: dict[str, Any], below: dict[str, Any]) -> dict[str, float]:
    ratios = np.array(above["round_means"]) / np.array(below["round_means"])
    return {
        "median": float(np.median(ratios)),
        "lowest": float(ratios.min()),
        "highest": float(ratios.max()),
    }


def throughput(
    contenders: Sequence[Contender],
    turns: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Images per second with every core: the best of each contender's loads, medians of turns.

    Args:
        contenders: Those without a load are left out.
        turns: How often each load is run, interleaved, after one run to warm up.
        seed: Of the turns' orders.
        progress: Called with 1 after each load's run.
    """
    loads = [(one.name, load) for one in contenders for load in one.loads()]
    rates: dict[tuple[str, str], list[float]] = {(name, load.how): [] for name, load in loads}
    draw = random.Random(seed)
    with undisturbed_by_us():
        for turn in range(turns + 1):
            draw.shuffle(loads)
            for name, load in loads:
                begin = time.perf_counter_ns()
                count = load.run()
                seconds = (time.perf_counter_ns() - begin) / 1e9
                if turn:  # the first one warms up
                    rates[name, load.how].append(count / seconds)
                if progress is not None:
                    progress(1)
    best: dict[str, dict[str, Any]] = {}
    for (name, how), values in rates.items():
        rate = float(np.median(values))
        if name not in best or rate > best[name]["images_per_second"]:
            best[name] = {"images_per_second": rate, "how": how}
    return best
