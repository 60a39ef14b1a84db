"""The benchmark's record, schema `fracskip.bench/1`: plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fracskip.bench.contender import Contender
from fracskip.bench.timing import Samples, ratio
from fracskip.data import ImageSet
from fracskip.intervals import wilson_interval

SCHEMA = "fracskip.bench/1"
POLICY = (
    "one image a call; what is timed is the whole call from Python, its input handling included",
    "fracskip takes uint8 pixels and normalises them within that time; the other engines are given "
    "images that were normalised before, ready in memory: an advantage to them",
    "every contender classifies every image once, in rounds over contenders in random order; each "
    "is warmed up before each of its turns",
    "calls during which the system took the core away are left out of `latency_us`, unless they "
    "are most of a round; their share is `disturbed`; `cpu_us` is processor time, of all calls",
    "accuracy is that of the timed calls; its interval is Wilson's at 95%",
    "8 bits for the other engines: post-training quantisation of the plain network, calibrated on "
    "the same training images; of what was tried, the fastest within 0.5 points of full precision, "
    "chosen on the first test images: an advantage to them",
    "throughput: every core, the better of one large batch and independent streams",
    "ratios: of mean times within each round; median and range over the rounds; of wall times only "
    "where both were left alone in at least half of the calls of every round",
)


def row(
    one: Contender,
    samples: Samples,
    data: ImageSet,
    throughput: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One contender's entry.

    Args:
        one: The contender.
        samples: What was measured of it.
        data: The images, with their labels.
        throughput: Of all cores, where it was measured.
    """
    accuracy = float((samples.predicted == data.labels).mean())
    own = None if samples.own_us is None else samples.statistics(samples.own_us)
    return {
        "name": one.name,
        "engine": one.engine,
        "precision": one.precision,
        "role": one.role,
        "network": one.network,
        "option": one.option,
        "settings": dict(one.settings),
        "accuracy": accuracy,
        "accuracy_95": list(wilson_interval(accuracy, len(data))),
        "cp": None if one.cp is None else float(one.cp()),
        "latency_us": samples.statistics(samples.wall_us),
        "engine_latency_us": own,
        "cpu_us": samples.statistics(samples.cpu_us, calm=False),
        "disturbed": float(samples.disturbed.mean()),
        "throughput": None if throughput is None else dict(throughput),
        "tried": [dict(item) for item in one.tried],
    }


def ratios(contenders: Sequence[Contender], found: Mapping[str, Samples]) -> dict[str, Any]:
    """Everybody's time over that of the first contender."""
    first, *others = contenders
    return {
        "to": first.name,
        "of": {one.name: ratio(found[one.name], found[first.name]) for one in others},
    }
