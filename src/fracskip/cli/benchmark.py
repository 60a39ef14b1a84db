"""`fracskip bench`: from the command line to a table, a record and a figure."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fracskip.cli import console, plain
from fracskip.errors import ConfigError, DataError


def plan_from(options: argparse.Namespace) -> Any:
    """The benchmark that the command line asks for.

    Raises:
        ConfigError: if the figure's file is no SVG, or the words name no network.
    """
    from fracskip.bench.run import Plan

    make = None
    if options.model is None:
        plain.refuse_alone(options)
    else:
        plain.check(options)
        if options.data is None:
            raise ConfigError(
                "--data is missing: a plain network's file does not say what it was trained on"
            )
        make = functools.partial(plain.load, options)

    if options.figure and Path(options.figure).suffix != ".svg":
        raise ConfigError(f"{options.figure} does not end in .svg: figures are written as SVG")
    engines = options.engines
    names = None if engines is None else tuple(filter(None, engines.replace(" ", "").split(",")))
    words = ["bench", *([] if options.checkpoint is None else [options.checkpoint])]
    images = options.images or Plan.images
    names_of = ("model", "weights", "size", "engines", "threads", "isa", "images", "rounds")
    for name in (*names_of, "data", "backbone"):
        value = images if name == "images" else getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--frontier", *options.frontier] if options.frontier else []
    return Plan(
        options.checkpoint or options.weights,
        plain=make,
        engines=names,
        threads=options.threads,
        isa=options.isa or "auto",
        images=images,
        rounds=options.rounds,
        data=options.data,
        backbone=options.backbone,
        frontier=tuple(options.frontier),
        command=("fracskip", *words),
    )


def write_figure(record: dict[str, Any], path: str) -> None:
    """Draws a record into an SVG file."""
    from fracskip.files import write_atomically
    from fracskip.report.latency import accuracy_latency
    from fracskip.report.svg import standalone

    write_atomically(
        Path(path),
        standalone(accuracy_latency(record, mean="members" in record["model"])).encode(),
        DataError,
    )


def show(record: dict[str, Any]) -> None:
    """The table, what was left out, and a warning where the machine was busy."""
    machine, backbone, ratios = record["machine"], record["backbone"], record["ratios"]
    # Under load wall times are those of everything that runs; processor time is the engine's.
    clock = "cpu" if machine["is_loaded"] and record["threads"] == 1 else "wall"
    times = "cpu_us" if clock == "cpu" else "latency_us"
    table = Table(
        title=f"{record['model']['model']} ({record['model']['name']}) on {record['images']:,} "
        f"{record['data']['name']} {record['data']['split']} images, one at a time",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
    )
    table.add_column(f"µs, {'processor' if clock == 'cpu' else 'wall'} time")
    for column in ("mean", "p50", "p99", "times", "images/s", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in record["contenders"]:
        ratio = ratios["of"].get(row["name"], {clock: {"median": 1.0}})[clock]
        rate = row["throughput"]
        low, high = row["accuracy_95"]
        table.add_row(
            row["name"],
            *(f"{row[times][key]:,.0f}" for key in ("mean", "p50", "p99")),
            "-" if ratio is None else f"{ratio['median']:.2f}",
            "" if rate is None else f"{rate['images_per_second']:,.0f}",
            f"{100 * row['accuracy']:.1f} ±{50 * (high - low):.1f}",
            style="bold" if row["role"] == "dynamic" else None,
        )
    console.show_table(table)
    console.say(
        f"{record['threads']} thread(s), {record['rounds']} interleaved rounds. times: mean over "
        f"that of {ratios['to']}, median over the rounds. images/s: {machine['cores_used']} "
        f"core(s) of {machine['processor']}."
    )
    if "members" in record["model"]:
        console.say(
            "0 > 1: images that member 0 is not sure of are escalated to member 1. budget: mean "
            "BitOps of an image over the last member's."
        )
    if backbone is not None:
        console.say(f"The other engines run {backbone['model']}: {backbone['source']}.")
    for item in record["missing"]:
        console.say(f"left out: {item['engine']} {item['reason']}")
    if machine["is_loaded"]:
        console.say(
            f"WARNING: the machine is busy (load {machine['load_before'][0]} before, "
            f"{machine['load_after'][0]} after): do not quote these times."
        )
