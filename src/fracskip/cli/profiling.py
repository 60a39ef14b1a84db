"""`fracskip bench --profile`: from the command line to tables of steps, and a record."""

from __future__ import annotations

import argparse
import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from fracskip.bench import conditions
from fracskip.cli import console, plain
from fracskip.data import load_sample, load_split
from fracskip.errors import ConfigError
from fracskip.files import require_regular_file
from fracskip.machine import describe_processor
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import BUNDLED, SUFFIX
from fracskip.runtime.profiling import Profile, Step

SCHEMA = "fracskip.profile/1"
IMAGES = 20  # by default
SLOWEST = 10  # steps that are shown
OTHERS = ("engines", "backbone", "frontier", "figure")  # what benchmarks have besides


def measure(options: argparse.Namespace) -> tuple[Profile, dict[str, Any]]:
    """Profiles the network that the command line names.

    Returns:
        What was found, and the record of it.

    Raises:
        ConfigError: if options are given that are for other engines, or there is no such set.
        DataError: if the images are not there.
    """
    load_before = conditions.load_average()
    for name in OTHERS:
        if getattr(options, name):
            raise ConfigError(
                f"--profile times the native engine's steps alone: leave --{name} out"
            )
    session, name = _session(options)
    pixels, data = _pixels(session, options.data, options.images or IMAGES)
    found = session.profile_steps(pixels, rounds=options.rounds, roofline=True)
    plans = session.networks
    named = ("model", "weights", "size", "threads", "isa", "images", "rounds", "data")
    words = [] if options.checkpoint is None else [options.checkpoint]
    for key in named:
        value = getattr(options, key)
        words += [] if value is None else [f"--{key}", str(value)]
    record = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["fracskip", "bench", *words, "--profile"],
        "model": {
            "name": name,
            "digest": session.digest,
            "model": (session.cascade or session.plan).name,
        },
        "data": data,
        "images": found.images,
        "rounds": found.rounds,
        "threads": found.threads,
        "isa": found.isa,
        "machine": conditions.describe(load_before),
        "versions": conditions.all_versions(),
        "peaks": asdict(found.peaks),
        "total_us": found.total_us,
        "latency_us": found.latency_us,
        "networks": [
            {
                "name": plan.name,
                "image": list(plan.image.size),
                "images": network.images,
                "steps": [_entry(found, step) for step in network.steps],
            }
            for plan, network in zip(plans, found.networks, strict=True)
        ],
    }
    return found, record


def _entry(found: Profile, step: Step) -> dict[str, Any]:
    entry = {key: value for key, value in asdict(step).items() if key != "network"}
    return {**entry, "roofline": found.share_of_roofline([step])}


def _session(options: argparse.Namespace) -> tuple[InferenceSession, str]:
    """The network that the words name, on the native engine, and what to call it."""
    name = options.checkpoint
    if options.model is None:
        plain.refuse_alone(options)
        if name not in BUNDLED:
            require_regular_file(name, "network")
        if name in BUNDLED or name.endswith(SUFFIX):
            return InferenceSession(name, options.threads, "native", options.isa or "auto"), name
        from fracskip.checkpoint import load

        net = load(name)
    else:
        net, name = plain.load(options), options.weights
    from fracskip.deployment.bundle import bundle_in_memory

    bundle = bundle_in_memory(net)
    return InferenceSession.of(bundle, options.threads, "native", options.isa or "auto"), name


def _pixels(
    session: InferenceSession, name: str | None, count: int
) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Images (B, H, W, C), at most so many, and which they are."""
    shape = (*session.image.size, session.image.channels)
    if name is None:
        data = load_sample()
        if data.images.shape[1:] != shape:
            console.remark(
                "pixels are random, for no bundled images fit; what gates decide and how many "
                "images are escalated is not as with real images: give them with --data NAME"
            )
            draw = np.random.default_rng(0)
            return draw.integers(0, 256, (count, *shape), np.uint8), {"name": "random", "split": ""}
    else:
        with console.decoding() as progress:
            data = load_split(name, "test", session.image, progress=progress)
        for note in data.notes:
            console.remark(note)
    rows = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    return data.images[rows], {"name": data.name, "split": data.split}


# -- tables ---------------------------------------------------------------------------------------


def show(found: Profile, record: dict[str, Any]) -> None:
    """The kernels, the steps that take longest, and what the columns mean."""
    threads, images = found.threads, found.images
    console.explain(
        f"{record['model']['model']} on {describe_processor(threads)}, {found.isa}: "
        f"{found.total_us:,.1f} µs an image in its steps, {found.latency_us:,.1f} with what lies "
        f"between them (means over {images} {record['data']['name']} images, medians of "
        f"{found.rounds} rounds)"
    )
    groups: dict[str, list[Step]] = defaultdict(list)
    for step in found.steps:
        groups[_kernel(found, step)].append(step)
    by_time = sorted(groups.items(), key=lambda group: -found.image_us(group[1]))
    table = _table("kernel", "steps")
    for kernel, steps in by_time:
        table.add_row(kernel, str(len(steps)), *_numbers(found, steps))
    console.show_table(table)

    slowest = sorted(found.steps, key=lambda step: -found.image_us([step]))[:SLOWEST]
    table = _table("part", "option", "kernel", title=f"The {len(slowest)} steps that take longest")
    several = len(found.networks) > 1
    for step in slowest:
        part = f"{step.network}/{step.part}" if several else step.part
        table.add_row(part, step.option, _kernel(found, step), *_numbers(found, [step]))
    console.show_table(table)
    console.explain(_legend(found))
    if several:
        came = ", ".join(f"{k}: {each.images}" for k, each in enumerate(found.networks))
        console.explain(f"Of {images} images so many came to each network: {came}.")
    if record["machine"]["is_loaded"]:
        console.say("WARNING: the machine is busy: do not quote these times.")


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "steps" else "left")
    for column in ("µs", "share", "GMAC/s", "GB/s", "roofline"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _kernel(found: Profile, step: Step) -> str:
    """Without the instruction set, which is said above."""
    return step.kernel.replace(f"{found.isa}_", "")


def _numbers(found: Profile, steps: Sequence[Step]) -> list[str]:
    took = found.image_us(steps)
    macs, size = (
        sum(step.calls * getattr(step, key) for step in steps) / found.images
        for key in ("macs", "bytes")
    )
    share = found.share_of_roofline(steps)
    return [
        f"{took:,.1f}",
        console.percent(took / found.total_us, 1),
        f"{macs / took / 1e3:,.1f}" if macs else "-",
        f"{size / took / 1e3:,.1f}" if size else "-",
        "-" if share is None else console.percent(share, 0),
    ]


def _legend(found: Profile) -> str:
    each = "µs: of an image, on average; a step that few images execute has little."
    peaks = asdict(found.peaks)
    read = peaks.pop("read")
    if read is None:
        return f"{each} roofline: not measured with plain loops."
    rates = ", ".join(f"{1e-9 * rate:,.0f} {name}" for name, rate in peaks.items() if rate)
    return (
        f"{each} roofline: how long a step's MACs or bytes take at least, over its time. "
        f"{found.threads} thread(s) reached {rates} GMAC/s in loops that do nothing else, and read "
        f"{1e-9 * read:,.0f} GB/s of as much memory as the bundle takes. It can pass 100%: MACs "
        "are the network's, and Winograd's algorithm needs fewer; values that were just written "
        "are read faster."
    )
