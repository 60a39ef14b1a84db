"""What members and options take on this machine; kept in the cache, not in bundles.

Shapes: M members, K options, L gated blocks.
"""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fracskip.data.store import cache_dir
from fracskip.errors import ConfigError, DataError
from fracskip.files import parse_json, write_atomically
from fracskip.machine import describe_processor
from fracskip.operating import Operation, Setting

if TYPE_CHECKING:
    from fracskip.runtime.session import InferenceSession

_log = logging.getLogger(__name__)
SECONDS = 1.5  # for all that is timed together
TURN_US = 20_000  # of one thing, before the next has its turn
LONGEST = 0.99  # quantile of single images
DAMPED = 50  # most images of a turn


@dataclass(frozen=True)
class Times:
    """Of one bundle, on one processor.

    Attributes:
        digest: The bundle's.
        processor: In words, with the engine and its instruction set.
        mean_us: Of an image: of each member of a cascade (M,), or of a network with every block at
            each option (K,), gates included.
        longest_us: Likewise, the 99th percentile of single images.
    """

    digest: str
    processor: str
    mean_us: tuple[float, ...]
    longest_us: tuple[float, ...]

    def budget_within(
        self, limit: float, reach: tuple[float, float], costs: Sequence[float]
    ) -> float:
        """The largest budget of a network whose images take at most so long on average.

        Time at a cost is interpolated between options, every block at one of them.

        Args:
            limit: Microseconds.
            reach: The smallest and the largest budget that it takes.
            costs: Of its options, ascending, (K,).

        Raises:
            ConfigError: if the smallest budget takes longer.
        """
        tried = np.geomspace(*reach, 257)
        # Wider options are not always slower; a budget may be spent in whatever way is quickest.
        rising = np.minimum.accumulate(np.array(self.mean_us)[::-1])[::-1]
        took = np.interp(tried, costs, rising)
        fits = tried[took <= limit * (1 + 1e-3)]
        if not len(fits):
            raise ConfigError(
                f"a mean latency of {limit:.4g} us is out of this network's reach: give "
                f"{took[0]:.4g} at least; its largest budget takes {took[-1]:.4g}"
            )
        return float(fits[-1])


def stored(session: InferenceSession) -> Times | None:
    """What was measured before, of this bundle on this processor; None if nothing was."""
    try:
        tree = parse_json(_file(session).read_text(encoding="utf-8"))
        found = Times(
            str(tree["digest"]),
            str(tree["processor"]),
            tuple(float(each) for each in tree["mean_us"]),
            tuple(float(each) for each in tree["longest_us"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = len(found.mean_us) == len(found.longest_us) == len(_subjects(session))
    sane = all(0 < each < 1e9 for each in (*found.mean_us, *found.longest_us))
    same = (found.digest, found.processor) == (session.digest, _processor(session))
    return found if fits and sane and same else None


def measure(session: InferenceSession) -> Times:
    """Times all members or options, interleaved, one image at a time; see `Times`."""
    runs = _subjects(session)
    took: list[list[float]] = [[] for _ in runs]  # of single images
    means: list[list[float]] = [[] for _ in runs]  # of turns
    turns = [
        max(1, min(DAMPED, int(TURN_US / max(min(run() for _ in range(3)), 1)))) for run in runs
    ]
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS or len(means[0]) < 3:
        for run, turn, single, mean in zip(runs, turns, took, means, strict=True):
            found = _calm(run, turn)
            single += found
            mean.append(float(np.mean(found)))
    times = Times(
        session.digest,
        _processor(session),
        tuple(float(np.median(mean)) for mean in means),
        tuple(float(np.quantile(single, LONGEST)) for single in took),
    )
    try:
        _file(session).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(session), json.dumps(asdict(times)).encode(), DataError)
    except (OSError, DataError) as error:
        _log.warning("times are not kept: %s", error)
    return times


def _calm(run: Callable[[], float], turn: int) -> list[float]:
    """Times of so many images, but for those during which the core was taken away."""
    found, calm = [], []
    for _ in range(turn):
        taken = _interruptions()
        found.append(run())
        calm.append(_interruptions() == taken)
    kept = [each for each, left_alone in zip(found, calm, strict=True) if left_alone]
    return kept or found


def _interruptions() -> int:
    """How often this thread has lost its core so far without asking for it."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _processor(session: InferenceSession) -> str:
    return f"{describe_processor(1)}, {session.engine} engine ({session.isa})"


def _file(session: InferenceSession) -> Path:
    name = f"{session.digest.removeprefix('sha256:')[:32]}-{session.isa}.json"
    return cache_dir() / "times" / name


def _subjects(session: InferenceSession) -> list[Callable[[], float]]:
    """What is timed: each call runs one image and gives its microseconds."""
    rng = np.random.default_rng(0)
    shape = (8, *session.image.size, session.image.channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    if session.cascade is None:
        plan = session.plan
        uniform = [
            np.maximum(np.full((1, len(plan.gated)), k), plan.masks[:, 0])
            for k in range(len(plan.option_set))
        ]
        return [_run(session, images, 0, None, [each]) for each in uniform]
    found = []
    for member in session.cascade.members:
        # Allocations drawn as validation images had them: noise would get others.
        drawn = [
            np.array([[rng.choice(len(row), p=np.array(row) / sum(row)) for row in member.shares]])
            for _ in range(16)
        ]
        found.append(_run(session, images, member.network, member.budget, drawn))
    return found


def _run(
    session: InferenceSession,
    images: NDArray[np.uint8],
    network: int,
    budget: float | None,
    allocations: Sequence[NDArray[np.integer]],
) -> Callable[[], float]:
    plan = session.networks[network]
    setting = Setting(np.zeros((), np.float32), None, network)
    gates_us = 0.0
    if plan.gate is not None:
        # What gates take depends on no image: any budget will do.
        reach = plan.budgets
        asked = budget if budget is not None or reach is None else reach[1]
        alone = plan.operating_points.alone(asked, len(images), plan.budget_input)
        found = session.execute(images, Operation((alone._replace(network=network),)), None, True)
        assert found.gate_us is not None
        gates_us = float(np.median(found.gate_us.sum(1)))
    turn = 0

    def run() -> float:
        nonlocal turn
        turn += 1
        image = images[turn % len(images)][None]
        forced = None
        if plan.gate is not None:
            forced = np.ascontiguousarray(allocations[turn % len(allocations)], np.uint8)
        found = session.execute(image, Operation((setting,)), forced)
        assert found.latency_us is not None
        return float(found.latency_us[0]) + gates_us

    return run
