"""One benchmark from beginning to end."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fracskip.bench import conditions
from fracskip.bench.contender import Contender
from fracskip.bench.native import OurEngine, native_contenders
from fracskip.bench.peers import (
    OURS,
    PEERS,
    QUANTISING,
    Bench,
    fastest_of,
    float_contenders,
    int8_contender,
    obstacle,
    reference_accuracy,
)
from fracskip.bench.record import POLICY, SCHEMA, ratios, row
from fracskip.bench.subject import Images, Plain, data_key, load_images, load_plain, plain_of
from fracskip.bench.timing import Samples, measure, throughput
from fracskip.bench.torch_engines import torch_threads
from fracskip.config import ImageConfig
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError, MissingExtraError
from fracskip.files import require_regular_file
from fracskip.machine import cores
from fracskip.runtime.cascade_bundle import CascadePlan, read_any
from fracskip.runtime.engines import instruction_sets
from fracskip.runtime.plan import Plan as NetworkPlan

ENGINES = ("native", *PEERS)
ALL_ENGINES = (*OURS, *PEERS)
THROUGHPUT_TURNS = 3


class Watcher(Protocol):
    """Who is told how far it is; `fracskip.cli.console` is one."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A count up to a total."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to benchmark, and how.

    Attributes:
        model: A checkpoint's name or file, or a .fsk file of a network or a cascade; a plain
            network's file, for the record.
        plain: Loads a plain network, which is then measured in place of the model.
        engines: Of `ALL_ENGINES`; None takes those of `ENGINES` that are installed.
        threads: For one image.
        isa: The native engine's instruction set.
        images: Test images, at most.
        rounds: Over the contenders.
        data: Name of a data set (None: the one that the network was trained on).
        backbone: File of the plain network, of a cascade that of its last member (None: the
            dynamic network's own full precision).
        frontier: Files of further plain networks, to run at 8 bits in the fastest peer.
        seed: Of the rounds' orders.
        command: The words of the command line, for the record.
    """

    model: str
    plain: Callable[[], DynamicNetwork] | None = None
    engines: tuple[str, ...] | None = None
    threads: int = 1
    isa: str = "auto"
    images: int = 2000
    rounds: int = 10
    data: str | None = None
    backbone: str | None = None
    frontier: tuple[str, ...] = ()
    seed: int = 0
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Subject:
    """The model, as a checkpoint or as a bundle.

    Attributes:
        net: Of a checkpoint.
        image: What it takes.
        class_names: Its classes.
        data_name: What it was trained on; of a cascade the last member.
        about: What the record says of it.
        backbone_image: What the plain network takes that the other engines run.
    """

    net: DynamicNetwork | None
    image: ImageConfig
    class_names: tuple[str, ...]
    data_name: str
    about: dict[str, Any]
    backbone_image: ImageConfig


def bench(plan: Plan, watcher: Watcher) -> dict[str, Any]:
    """Measures a dynamic network beside what else could be run in its place.

    Returns:
        The record.

    Raises:
        ConfigError: if the plan asks for something impossible.
        MissingExtraError: if an engine that was asked for is not installed.
        CheckpointError: if a file is damaged or does not fit.
        DataError: if the images are not there.
    """
    load_before = conditions.load_average()
    engines, missing = _available(plan.engines)
    peers = [engine for engine in engines if engine in PEERS]
    if plan.frontier and not set(peers) & set(QUANTISING):
        raise ConfigError(f"--frontier needs one of the engines {', '.join(QUANTISING)}")
    subject = _load(plan)
    plain = _plain(plan, subject) if peers else None
    others = [load_plain(path, subject.image, subject.class_names) for path in plan.frontier]
    own_data = data_key(subject.data_name or plan.data or "")
    images = load_images(
        plan.data or own_data,
        subject.image,
        subject.class_names,
        plan.images,
        own_data,
        named=plan.plain is None,
    )
    count, rounds = len(images.test), min(plan.rounds, len(images.test))
    setting = Bench(images, plan.threads, cores(), watcher.say)
    # torch has one number of threads for the whole process; Inductor compiles it in.
    with tempfile.TemporaryDirectory() as folder, torch_threads(plan.threads):
        ours = [engine for engine in engines if engine in OURS]
        contenders = _ours(ours, plan, subject, setting, Path(folder))
        if plain is not None:
            contenders += _peers(peers, plain, others, setting)
        watcher.say(f"measuring {len(contenders)} contenders")
        with watcher.counting("images", count * len(contenders)) as advance:
            found = measure(contenders, count, rounds, plan.seed, advance)
        rates = throughput(contenders, THROUGHPUT_TURNS, plan.seed)
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(plan.command),
        "policy": list(POLICY),
        "model": subject.about,
        "backbone": _about(plain),
        "frontier": [_about(other) for other in others],
        "data": {"name": images.test.name, "split": images.test.split},
        "images": count,
        "calibration_images": len(images.calibration_pixels),
        "rounds": rounds,
        "threads": plan.threads,
        "machine": conditions.describe(load_before),
        "versions": conditions.all_versions(),
        "contenders": _rows(contenders, found, images, rates),
        "ratios": ratios(contenders, found),
        "missing": missing,
    }


def _available(asked: Sequence[str] | None) -> tuple[list[str], list[dict[str, str]]]:
    """The engines to run, and those of the default list that are not there."""
    unknown = sorted(set(asked or ()) - set(ALL_ENGINES))
    if unknown:
        raise ConfigError(f"engine {unknown[0]!r} is unknown: use {', '.join(ALL_ENGINES)}")
    if asked is not None and not asked:
        raise ConfigError(f"no engine was named: use {', '.join(ALL_ENGINES)}")
    engines, missing = [], []
    for engine in dict.fromkeys(asked or ENGINES):
        reason = obstacle(engine)
        if engine == "native" and not instruction_sets():
            reason = "was not built: it needs a C++17 compiler when fracskip is installed"
        if not reason:
            engines.append(engine)
            continue
        if asked is not None:
            raise MissingExtraError(f"engine {engine} {reason}")
        missing.append({"engine": engine, "reason": reason})
    return engines, missing


def _load(asked: Plan) -> _Subject:
    model = asked.model
    require_regular_file(model, "network")
    if asked.plain is None and model.endswith(".fsk"):
        bundle = read_any(model)
        plan = bundle.plan
        last = plan if isinstance(plan, NetworkPlan) else plan.networks[plan.members[-1].network]
        about = {"name": model, "digest": bundle.digest, "model": plan.name, **_about_plan(plan)}
        return _Subject(None, plan.image, plan.class_names, last.data_name, about, last.image)
    from fracskip.checkpoint import load

    net = load(model) if asked.plain is None else asked.plain()
    spec = net.spec
    about = {
        "name": model,
        "digest": net.digest,
        "model": spec.model.name,
        "options": list(spec.options),
        "target": net.operating_points.target,
    }
    return _Subject(net, spec.image, spec.class_names, spec.data_name, about, spec.image)


def _about_plan(plan: NetworkPlan | CascadePlan) -> dict[str, Any]:
    if isinstance(plan, NetworkPlan):
        return {"options": list(plan.options), "target": plan.operating_points.target}
    networks = [plan.networks[member.network] for member in plan.members]
    return {
        "score": plan.score,
        "members": [
            {
                "name": network.name,
                "image": list(network.image.size),
                "options": list(network.options),
                "budget": member.budget,
                "cost": cost,
            }
            for member, network, cost in zip(plan.members, networks, plan.bitops, strict=True)
        ],
    }


def _plain(plan: Plan, subject: _Subject) -> Plain:
    if subject.backbone_image != subject.image:
        raise ConfigError(
            f"{plan.model} takes images as its largest network does, its last member others, and "
            "the other engines would be given the former: use --engines native"
        )
    if plan.backbone is not None:
        return load_plain(plan.backbone, subject.image, subject.class_names)
    if subject.net is None:
        whose = "last member's backbone" if "members" in subject.about else "backbone"
        raise ConfigError(
            f"{plan.model} is a bundle and holds no plain network for the other engines: give its "
            f"{whose} with --backbone FILE, or --engines native"
        )
    return plain_of(subject.net)


def _ours(
    engines: Sequence[str], plan: Plan, subject: _Subject, setting: Bench, folder: Path
) -> list[Contender]:
    if not engines:
        return []
    path = Path(plan.model)
    if subject.net is not None:
        from fracskip.deployment.bundle import export_bundle

        path = folder / "network.fsk"
        export_bundle(subject.net, path)
    contenders: list[Contender] = []
    kinds: tuple[OurEngine, ...] = ("native", "portable")
    for engine in kinds:
        if engine in engines:
            contenders += native_contenders(
                path,
                setting.images,
                engine=engine,
                threads=setting.threads,
                cores=setting.cores,
                isa=plan.isa if engine == "native" else "auto",
            )
    return contenders


def _peers(
    engines: Sequence[str], plain: Plain, others: Sequence[Plain], setting: Bench
) -> list[Contender]:
    found: list[Contender] = []
    for engine in engines:
        found += float_contenders(engine, plain, setting)
    quantising = [engine for engine in engines if engine in QUANTISING]
    if not quantising:
        return found
    reference = reference_accuracy(plain, setting)
    narrow = [int8_contender(engine, plain, setting, reference) for engine in quantising]
    fastest = fastest_of(narrow, setting) if others else ""
    for other in others:
        reference = reference_accuracy(other, setting)
        narrow.append(int8_contender(fastest, other, setting, reference, "frontier"))
    return found + narrow


def _rows(
    contenders: Sequence[Contender],
    found: dict[str, Samples],
    images: Images,
    rates: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    return [row(one, found[one.name], images.test, rates.get(one.name)) for one in contenders]


def _about(plain: Plain | None) -> dict[str, Any] | None:
    if plain is None:
        return None
    return {"model": plain.name, "source": plain.source, "digest": plain.digest}
