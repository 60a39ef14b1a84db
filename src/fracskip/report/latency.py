"""The figure of a benchmark's record: accuracy over latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fracskip.intervals import wilson_interval
from fracskip.report.figures import MARKERS, time_ticks
from fracskip.report.palette import option_colour, role_colour
from fracskip.report.placement import LabelPlacer, accuracy_limits, log_ticks
from fracskip.report.svg import FONT_PX, add_axes, add_title, drawing, new_figure, to_svg
from fracskip.report.wording import microseconds, option_words, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 640, 400
_OFF_SCALE = 0.15
_PRECISION = {"fp32": "full", "bf16": "16", "int8": "8"}


@dataclass(frozen=True)
class _Point:
    role: str
    engine: str
    label: str
    colour: str
    latency: float
    accuracy: float
    interval: tuple[float, float]


def accuracy_latency(
    record: Mapping[str, Any], *, ident: str = "latency", mean: bool = False
) -> str:
    """Accuracy over latency, log scale: the dynamic network among what else could run.

    What lies more than 15 points of accuracy under the best is drawn as an arrow at the lower edge.
    The members of a cascade by themselves are squares, its operating points joined by a line.

    Args:
        record: Of schema `fracskip.bench/1`.
        ident: Identifies the figure in its page.
        mean: Of the mean latency of an image, for cascades: their median image is never escalated.
    """
    points = [
        _point(row, record["images"], "mean" if mean else "p50") for row in record["contenders"]
    ]
    floor = max(point.accuracy for point in points) - _OFF_SCALE
    ends = [end for point in points if point.accuracy >= floor for end in point.interval]
    low, high = accuracy_limits(ends)
    edge = low + 0.04 * (high - low)
    fastest, slowest = (pick(point.latency for point in points) for pick in (min, max))
    room = max((slowest / fastest) ** 0.1, 1.2)
    left, right = fastest / room, slowest * room
    with drawing(ident):
        figure = new_figure(WIDTH, HEIGHT)
        axes = add_axes(figure, 56, 28, WIDTH - 74, HEIGHT - 72)
        add_title(axes, "Accuracy")
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        time_ticks(axes.xaxis, log_ticks(left, right, 7))
        axes.yaxis.set_major_formatter(lambda value, _: percent(value))
        axes.grid(visible=True)
        threads = record["threads"]
        axes.set_xlabel(
            f"Latency of one image ({'mean' if mean else 'median'}), "
            f"{threads} thread{'s'[: threads > 1]}, log scale"
        )
        placer = LabelPlacer(axes, FONT_PX)
        for role in ("forced", "frontier", "dynamic"):
            _lines(axes, [point for point in points if point.role == role], floor)
        for point in points:
            visible = point.accuracy >= floor
            y = point.accuracy if visible else edge
            placer.occupy(point.latency, y)
            if visible:
                axes.plot(
                    [point.latency] * 2,
                    point.interval,
                    color=role_colour("faint"),
                    lw=1.2,
                    zorder=3,
                )
            axes.plot(
                point.latency,
                y,
                marker=_marker(point, points) if visible else "v",
                ms=10 if point.role == "dynamic" else 8,
                color=point.colour,
                mec=role_colour("surface"),
                zorder=5 if point.role == "dynamic" else 4,
            )
        for point in sorted(points, key=_importance):
            visible = point.accuracy >= floor
            text = point.label + ("" if visible else f": {percent(point.accuracy)}")
            role = "ink" if point.role == "dynamic" else "muted"
            placer.place(point.latency, point.accuracy if visible else edge, text, role)
        words = "; ".join(
            f"{point.label}: {percent(point.accuracy)} at {microseconds(point.latency)}"
            for point in points
        )
        return to_svg(figure, ident, f"Accuracy over latency. {words}")


def _point(row: Mapping[str, Any], images: int, clock: str) -> _Point:
    role, option = row["role"], row["option"]
    label = row["network"]
    if role == "dynamic":
        colour = role_colour("ink")
    elif role == "member":
        colour = role_colour("muted")
    elif role == "forced":
        colour, label = option_colour(option), option_words(option)
    else:
        colour = option_colour(_PRECISION[row["precision"]])
        if role == "backbone":
            label = f"{row['engine']} {row['precision']}"
    return _Point(
        role,
        row["engine"],
        label,
        colour,
        row["latency_us"][clock],
        row["accuracy"],
        wilson_interval(row["accuracy"], images),
    )


def _importance(point: _Point) -> int:
    """Who is labelled first, while there is room: us, then our closest rivals."""
    if point.role == "backbone":
        return 2 if point.colour == option_colour("8") else 4
    # Members have names that nothing else says; operating points are in a line.
    return {"member": 0, "dynamic": 1}.get(point.role, 3)


def _marker(point: _Point, points: Sequence[_Point]) -> str:
    if point.role in ("forced", "member"):
        return "s"
    engines = list(dict.fromkeys(other.engine for other in points))
    return MARKERS[engines.index(point.engine) % len(MARKERS)]


def _lines(axes: Axes, points: Sequence[_Point], floor: float) -> None:
    """Joins the points of each engine by a line."""
    for engine in dict.fromkeys(point.engine for point in points):
        own = [point for point in points if point.engine == engine and point.accuracy >= floor]
        if len(own) > 1:
            ends = sorted((point.latency, point.accuracy) for point in own)
            axes.plot(*zip(*ends, strict=True), color=role_colour("faint"), lw=1, zorder=2)


def skipped_latency(proofs: Sequence[Mapping[str, Any]], *, ident: str = "skip") -> str:
    """Measured time over the number of blocks skipped, the sum of what is executed as a line.

    Args:
        proofs: For each option that the other blocks take, the allocations that were timed:
            `forced` of a record of schema `fracskip.skip-proportional/1`.
        ident: Identifies the figure in its page.
    """
    with drawing(ident):
        figure = new_figure(560, 340)
        axes = add_axes(figure, 60, 28, 480, 264)
        add_title(axes, "Latency (µs)")
        for proof in proofs:
            points = proof["points"]
            by_count: dict[int, list[float]] = {}
            for point in points:
                by_count.setdefault(point["skipped"], []).append(point["fitted_us"])
            model = sorted((count, sum(all_) / len(all_)) for count, all_ in by_count.items())
            axes.plot(*zip(*model, strict=True), color=role_colour("faint"), lw=1.2, zorder=2)
            axes.plot(
                [point["skipped"] for point in points],
                [point["measured_us"] for point in points],
                "o",
                ms=5,
                color=option_colour(proof["option"]),
                mec=role_colour("surface"),
                zorder=3,
            )
            full = proof["option"] == "full"
            axes.annotate(
                "others in full" if full else f"others at {option_words(proof['option'])}",
                (0, points[0]["measured_us"]),
                xytext=(8, 6),
                textcoords="offset points",
                color=role_colour("muted"),
            )
        axes.set_ylim(0, None)
        axes.grid(visible=True)
        axes.set_xlabel("Blocks skipped; the line is the sum of what is executed")
        return to_svg(figure, ident, "Measured latency over the number of skipped blocks")
