"""Cascades beside all static networks, on our engine and on OpenVINO, in one interleaved run.

    python tools/bench_cascade.py cifar10 --json results/cascade_cifar10.json
    python tools/bench_cascade.py cifar100 --json results/cascade_cifar100.json
    python tools/bench_cascade.py photos --lite build/lite --photos photos5.tar --json ...

No network is trained here: all are quantised after training, calibrated on training images. One
image a call, one thread. On CIFAR-10 and on the photographs a cascade's thresholds are chosen on
one half of the test images and measured on the other, both ways; nothing else is chosen on test
images. On CIFAR-100 they are chosen on the validation images that no network was trained on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cascade_subjects as subjects
import numpy as np
from cascade_subjects import Experiment, Static
from numpy.typing import NDArray

import fracskip
from fracskip.bench import conditions
from fracskip.bench.contender import Contender, Logits
from fracskip.bench.openvino_engine import ov_nncf
from fracskip.bench.peers import Bench, int8_contender
from fracskip.bench.record import SCHEMA, row
from fracskip.bench.selection import first_accuracy
from fracskip.bench.timing import Samples, measure
from fracskip.files import write_atomically
from fracskip.machine import cores
from fracskip.operating.cascade import Choice
from fracskip.operating.scores import answers_of, score_of
from fracskip.report.latency import accuracy_latency
from fracskip.report.svg import standalone
from fracskip.runtime import InferenceSession

POINTS = 8  # operating points of the cascade
Runner = Callable[[Any], Logits]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def static_contender(static: Static, session: InferenceSession, ours: str) -> Contender:
    """One static network on our engine."""
    last: list[float] = [0.0]

    def run(image: NDArray[np.uint8]) -> Logits:
        found = session.run(image)
        assert found.latency_us is not None
        last[0] = float(found.latency_us[0])
        return found.logits

    pixels = static.images.test.images
    return Contender(
        name=f"{ours} {static.name}",
        engine="native",
        precision="int8",
        role="frontier",
        network=static.name,
        inputs=[pixels[k : k + 1] for k in range(len(pixels))],
        run=run,
        own_latency_us=lambda: last[0],
        settings={"isa": session.isa},
    )


@dataclass(frozen=True)
class Fold:
    """A cascade, and the test images that it is measured on."""

    session: InferenceSession
    rows: NDArray[np.bool_]


def folds_of(
    experiment: Experiment, bundles: dict[str, Any], members: Sequence[str], threads: int
) -> list[Fold]:
    """The cascades: one, or one for each half of the test images."""
    given = [bundles[name] for name in members]
    test = experiment.test
    if experiment.validation is not None:
        net = fracskip.cascade(given, experiment.validation)
        return [Fold(net.session(threads), np.ones(len(test), bool))]
    # The first half and the second of images in random order: `in_random_order`. Images that follow
    # each other go to one cascade, as they would where there is but one.
    half = np.arange(len(test)) < len(test) // 2
    found = []
    for chosen in (half, ~half):
        net = fracskip.cascade(given, test.subset(np.flatnonzero(chosen)))
        found.append(Fold(net.session(threads), ~chosen))
    return found


def cascade_contender(
    experiment: Experiment, folds: Sequence[Fold], choices: Sequence[Choice], name: str
) -> Contender:
    """The cascades at one operating point each, every image by the one that has not seen it."""
    last: list[float] = [0.0]
    pixels = experiment.test.images
    of = np.zeros(len(pixels), np.int64)
    for index, fold in enumerate(folds):
        of[fold.rows] = index
    pairs = [(fold.session, choice) for fold, choice in zip(folds, choices, strict=True)]

    def run(given: tuple[int, NDArray[np.uint8]]) -> Logits:
        session, choice = pairs[given[0]]
        found = session.run_choice(given[1], choice)
        assert found.latency_us is not None
        last[0] = float(found.latency_us[0])
        return found.logits

    return Contender(
        name=name,
        engine="native",
        precision="int8",
        role="dynamic",
        network=name.partition(" at ")[0].removeprefix("fracskip "),
        inputs=[(of[k], pixels[k : k + 1]) for k in range(len(pixels))],
        run=run,
        own_latency_us=lambda: last[0],
        settings={"points": [_words(choice) for choice in choices]},
    )


def _words(choice: Choice) -> dict[str, Any]:
    return {"chain": choice.chain, "thresholds": choice.thresholds, "rates": choice.rates,
            "accuracy": choice.accuracy, "cost": choice.cost}  # fmt: skip


def openvino_cascade(
    experiment: Experiment,
    folds: Sequence[Fold],
    choices: Sequence[Choice],
    peers: dict[str, Contender],
    members: Sequence[str],
    name: str,
) -> Contender | None:
    """The same members and thresholds, executed by OpenVINO from Python."""
    plan = folds[0].session.cascade
    assert plan is not None
    order = {plan_name: name for name in members for plan_name in [experiment.plan_name(name)]}
    names = [order[plan.networks[member.network].name] for member in plan.members]
    if any(names[m] not in peers for choice in choices for m in choice.chain):
        return None
    of = np.zeros(len(experiment.test), np.int64)
    for index, fold in enumerate(folds):
        of[fold.rows] = index

    def run(given: tuple[int, dict[str, Any]]) -> Logits:
        choice, plan = choices[given[0]], folds[given[0]].session.cascade
        assert plan is not None
        seen: list[Logits] = []
        temperatures = [plan.members[member].temperature for member in choice.chain]
        for place, member in enumerate(choice.chain):
            seen.append(np.array(peers[names[member]].run(given[1][names[member]])))
            said = answers_of(seen, temperatures[: place + 1], plan.averaged)[-1]
            if place < len(choice.thresholds):
                if score_of(said, plan.score)[0] >= choice.thresholds[place]:
                    break
        return said

    used = {names[m] for choice in choices for m in choice.chain}
    inputs = [
        (of[k], {name: peers[name].inputs[k] for name in used}) for k in range(len(experiment.test))
    ]
    return Contender(
        name=name,
        engine="openvino",
        precision="int8",
        role="dynamic",
        network="the same in OpenVINO",
        inputs=inputs,
        run=run,
    )


# -- what it comes to -----------------------------------------------------------------------------


def hull(times: NDArray[np.float64], accuracy: NDArray[np.float64]) -> list[int]:
    """The static networks on the upper concave hull, ascending in time: the best line there is."""
    found: list[int] = []
    for index in np.argsort(times, kind="stable"):
        if found and accuracy[index] <= accuracy[found[-1]]:
            continue
        while len(found) > 1:
            a, b = found[-2:]
            rise = (accuracy[b] - accuracy[a]) * (times[index] - times[a])
            if rise > (accuracy[index] - accuracy[a]) * (times[b] - times[a]):
                break
            found.pop()
        found.append(int(index))
    return found


def against_line(
    time: float, right: NDArray[np.bool_], times: Sequence[float], rights: NDArray[np.bool_]
) -> dict[str, Any]:
    """How far a cascade is above the line between static networks, and how much faster.

    Args:
        time: Its mean time.
        right: Which images it answers right, (N,).
        times: Of the static networks.
        rights: Theirs, (networks, N).
    """
    each, accuracy = np.array(times), rights.mean(1)
    line = hull(each, accuracy)
    x, y = each[line], accuracy[line]
    found: dict[str, Any] = {"line": list(map(int, line))}
    place = int(np.clip(np.searchsorted(x, time) - 1, 0, len(x) - 2))
    share = float(np.clip((time - x[place]) / (x[place + 1] - x[place]), 0, 1))
    on_line = (1 - share) * rights[line[place]] + share * rights[line[place + 1]]
    gap = right - on_line
    found["above_line"] = float(gap.mean())
    found["above_line_error"] = float(gap.std() / np.sqrt(len(gap)))
    reached = float(right.mean())
    if reached <= y[-1]:
        found["time_over_static"] = float(time / np.interp(reached, y, x))
    return found


def report(
    experiment: Experiment, contenders: Sequence[Contender], found: dict[str, Samples]
) -> list[dict[str, Any]]:
    """Of each cascade's point: where it is above the static networks' lines."""
    labels = experiment.test.labels

    def mean(name: str) -> float:
        samples = found[name]
        times = samples.wall_us if samples.own_us is None else samples.own_us
        return float(times[samples.calm()].mean())

    def wall(name: str) -> float:
        return float(found[name].wall_us[found[name].calm()].mean())

    ours = [one.name for one in contenders if one.role == "frontier" and one.engine == "native"]
    theirs = [one.name for one in contenders if one.role == "frontier" and one.engine != "native"]
    rows = []
    for one in contenders:
        if one.role != "dynamic":
            continue
        right = found[one.name].predicted == labels
        item: dict[str, Any] = {
            "name": one.name,
            "accuracy": float(right.mean()),
            "engine_us": mean(one.name),
            "wall_us": wall(one.name),
        }
        for side, names, clock in (("ours", ours, mean), ("openvino", theirs, wall)):
            if len(names) > 1 and (one.engine == "native" or side == "openvino"):
                rights = np.stack([found[name].predicted == labels for name in names])
                item[side] = against_line(
                    clock(one.name), right, [clock(name) for name in names], rights
                )
                item[side]["line"] = [names[k] for k in item[side]["line"]]
        rows.append(item)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=("cifar10", "cifar100", "photos"))
    parser.add_argument("--json", required=True)
    parser.add_argument("--figure")
    parser.add_argument("--lite", help="folder of the Lite networks' weights")
    parser.add_argument("--photos", help="photos5.tar, or the folder that it was unpacked to")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-peers", action="store_true", help="leave OpenVINO out")
    parser.add_argument("--nncf", action="store_true", help="OpenVINO's by NNCF's mixed preset")
    options = parser.parse_args()
    load_before = conditions.load_average()
    experiment = subjects.load(options.experiment, options.lite, options.photos)
    say(f"quantising {len(experiment.statics)} networks")
    bundles = {static.name: static.quantised() for static in experiment.statics}
    bundles |= experiment.others
    sessions = {name: InferenceSession.of(bundle) for name, bundle in bundles.items()}
    contenders = [
        static_contender(static, sessions[static.name], "fracskip int8")
        for static in experiment.statics
    ]
    peers: dict[str, Contender] = {}
    for static in () if options.no_peers else experiment.statics:
        if static.name not in experiment.peers:
            continue
        if options.nncf:
            say(f"quantising {static.name} for openvino: nncf MIXED")
            one = ov_nncf(static.plain, static.images, "MIXED", threads=1, cores=cores())
        else:
            bench = Bench(static.images, 1, cores(), say)
            reference = first_accuracy(static.float_contender(), static.images.test.labels)
            one = int8_contender("openvino", static.plain, bench, reference, "frontier")
        peers[static.name] = replace(
            one, name=f"openvino int8 {static.name}", network=static.name, role="frontier"
        )
    contenders += peers.values()
    for label, members in experiment.cascades.items():
        say(f"choosing thresholds of {label}")
        folds = folds_of(experiment, bundles, members, threads=1)
        for fold in folds:
            fold.session.measure()
        reach = [experiment.reach(fold.session) for fold in folds]
        low, high = max(r[0] for r in reach), min(r[1] for r in reach)
        for target in np.geomspace(low, high, POINTS):
            choices = [fold.session.choose(latency_us=float(target)) for fold in folds]
            name = f"fracskip cascade {label} at {target:.0f} us"
            contenders.append(cascade_contender(experiment, folds, choices, name))
            twin = openvino_cascade(
                experiment, folds, choices, peers, members, f"openvino cascade {label} {target:.0f}"
            )
            if twin is not None:
                contenders.append(twin)
    count = len(experiment.test)
    say(f"measuring {len(contenders)} contenders on {count} images")
    done = [0]

    def progress(images: int) -> None:
        done[0] += images
        say(f"{done[0] / count / len(contenders):.0%}")

    found = measure(contenders, count, options.rounds, 0, progress)
    points = report(experiment, contenders, found)
    record = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "policy": [__doc__.split("\n\n")[2]],
        "data": {"name": experiment.test.name, "split": experiment.test.split},
        "images": count,
        "rounds": options.rounds,
        "threads": 1,
        "machine": conditions.describe(load_before),
        "versions": conditions.all_versions(),
        "contenders": [row(one, found[one.name], experiment.test, None) for one in contenders],
        "points": points,
    }
    write_atomically(Path(options.json), (json.dumps(record, indent=1) + "\n").encode())
    if options.figure:
        write_atomically(
            Path(options.figure), standalone(accuracy_latency(record, mean=True)).encode()
        )
    for one in contenders:
        samples = found[one.name]
        times = samples.wall_us if samples.own_us is None else samples.own_us
        right = float((samples.predicted == experiment.test.labels).mean())
        print(f"{one.name:50} {times[samples.calm()].mean():9.1f} us  {100 * right:.2f}%")
    for point in points:
        print(json.dumps({k: v for k, v in point.items() if k != "line"}))


if __name__ == "__main__":
    main()
