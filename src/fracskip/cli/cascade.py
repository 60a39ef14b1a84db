"""`fracskip cascade` and `fracskip tune`: networks put together, and their operating points."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from fracskip.cli import console
from fracskip.data import load_split
from fracskip.errors import ConfigError
from fracskip.evaluation import cascade
from fracskip.evaluation.thresholds import opened
from fracskip.files import require_regular_file
from fracskip.intervals import wilson_interval
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import BUNDLED, SUFFIX

MOST_ROWS = 12


def run_cascade(options: argparse.Namespace) -> int:
    """Networks that are there already, put together by validation images."""
    target = Path(options.to)
    if target.suffix not in (SUFFIX, ".onnx"):
        raise ConfigError(f"{target} ends in neither {SUFFIX} nor .onnx: choose one of them")
    members = []
    for name in options.members:
        if name not in BUNDLED:
            require_regular_file(name, "network")
        members.append(opened(name))
    image = max((member.plan.image for member in members), key=lambda each: each.size)
    with console.decoding() as progress:
        data = load_split(options.data, options.split, image, progress=progress)
    for note in data.notes:
        console.remark(note)
    if options.limit:
        data = data.evenly(options.limit)
    with console.counting("images", len(data)) as advance:
        net = cascade(members, data, progress=advance)
    if target.suffix == SUFFIX:
        net.save(target)
    else:
        from fracskip.deployment import export

        export(net, target)
    session = net.session()
    show_points(session, net.plan.bitops, "share of the last member's BitOps")
    console.say(f"cascade: {target}")
    return 0


def run_tune(options: argparse.Namespace) -> int:
    """A bundle's members or options, timed on this machine."""
    require_regular_file(options.bundle, "bundle") if options.bundle not in BUNDLED else None
    session = InferenceSession(options.bundle)
    times = session.measure()
    if session.cascade is not None:
        show_points(session, times.mean_us, "µs an image")
    else:
        table = _table("every block at", "µs an image", "99% within")
        rows = zip(session.options.labels, times.mean_us, times.longest_us, strict=True)
        for label, mean, longest in rows:
            table.add_row(label, f"{mean:,.0f}", f"{longest:,.0f}")
        console.show_table(table)
    console.say(f"one image at a time, one thread of {times.processor}")
    return 0


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def show_points(session: InferenceSession, each: Sequence[float], unit: str) -> None:
    """The members, and the operating points that pay.

    Args:
        session: Of a cascade.
        each: What a member costs.
        unit: In which unit.
    """
    plan = session.cascade
    assert plan is not None

    def cost(value: float) -> str:
        return f"{value:,.0f}" if max(each) >= 10 else f"{value:.3f}"

    members = _table("member", "network", "pixels", unit, "accuracy")
    for index, member in enumerate(plan.members):
        network = plan.networks[member.network]
        at = "" if member.budget is None else f" at {console.percent(member.budget)}"
        high, wide = network.image.size
        members.add_row(
            str(index), network.name + at, f"{high}x{wide}", cost(each[index]),
            _accuracy(member.correct, plan.images),
        )  # fmt: skip
    console.show_table(members)
    points = _table("chain", unit, "escalated", "accuracy")
    frontier, costs = plan.frontier(each), plan.costs(each)
    step = max(1, -(-len(frontier) // MOST_ROWS))
    shown = sorted({*frontier[::step], frontier[-1]}, key=frontier.index)
    for index in shown:
        point = plan.points[index]
        points.add_row(
            " > ".join(map(str, point.chain)), cost(costs[index]),
            " > ".join(console.percent(rate, 1) for rate in point.rates[1:]),
            _accuracy(point.correct, plan.images),
        )  # fmt: skip
    console.show_table(points)
    console.explain(
        f"Operating points that pay, of {len(plan.points)}; accuracy on {plan.images:,} validation "
        "images by which nothing was chosen, ± 95%."
    )


def cascade_rows(
    session: InferenceSession,
    files: Sequence[Path],
    pixels: NDArray[np.uint8],
    budget: float | None,
) -> list[dict[str, Any]]:
    """What a cascade says of image files, printed and as rows of a record.

    Args:
        session: Of a cascade.
        files: Of the images, N.
        pixels: uint8 (N, H, W, C).
        budget: See `InferenceSession.run`.
    """
    choice = session.choose(budget)
    found = session.run_choice(pixels, choice)
    predicted, probabilities = found.predicted, found.probabilities
    rows = [
        {
            "file": str(file),
            "class": session.class_names[index],
            "probability": float(probabilities[row, index]),
            "cost": float(found.cost[row]),
            "members": [
                member
                for member, executed in zip(choice.chain, found.executions, strict=True)
                if row in executed.rows
            ],
        }
        for row, (file, index) in enumerate(zip(files, predicted, strict=True))
    ]
    table = Table()
    for column in ("image", "class"):
        table.add_column(column, overflow="fold")
    for column in ("prob.", "BitOps", "members"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (console.percent(row[key], 1) for key in ("probability", "cost"))
        table.add_row(row["file"], row["class"], *shares, " > ".join(map(str, row["members"])))
    console.show_table(table)
    return rows


def _accuracy(correct: int, images: int) -> str:
    low, high = wilson_interval(correct / images, images)
    return f"{100 * correct / images:.2f} ±{50 * (high - low):.1f}"


def show_record(record: dict[str, Any]) -> None:
    """What a cascade did on a data set: members by themselves, then points."""
    data = record["data"]
    title = (
        f"{record['checkpoint']['name']} on {record['images']:,} {data['name']} {data['split']} "
        "images"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for column in ("members", "accuracy", "cost", "µs mean", "p99", "escalated", "at random"):
        table.add_column(column, justify="right", no_wrap=True)

    def row(name: str, item: dict[str, Any], rates: Sequence[float], bold: bool) -> None:
        low, high = item["accuracy_95"]
        random = item.get("random_escalation")
        table.add_row(
            name,
            f"{100 * item['accuracy']:.2f} ±{50 * (high - low):.1f}",
            f"{item['cost']:.3f}",
            f"{item['latency_us']['mean']:,.0f}",
            f"{item['latency_us']['p99']:,.0f}",
            " > ".join(console.percent(rate, 1) for rate in rates),
            "" if random is None else f"{100 * random:.2f}",
            style="bold" if bold else None,
        )

    for index, member in enumerate(record["members"]):
        row(f"{index} alone", member, (), False)
    for point in record["points"]:
        row(" > ".join(map(str, point["chain"])), point, point["rates"][1:], True)
    console.show_table(table)
    names = "; ".join(
        f"{index}: {member['name']} at {member['image'][0]}x{member['image'][1]}"
        for index, member in enumerate(record["members"])
    )
    console.explain(
        f"{names}. cost: BitOps over those of the last member. at random: accuracy where as many "
        f"images are escalated, drawn at random. {record['seconds']:.1f} s on {record['device']}."
    )
