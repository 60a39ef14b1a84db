"""The report's figures: each takes records and returns an SVG element.

Every figure can be drawn wide (for a desktop) or narrow (for a phone), so that its text keeps its
size on both; the page shows the one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from fracskip.intervals import wilson_interval
from fracskip.report.palette import option_colour, role_colour
from fracskip.report.placement import LabelPlacer, accuracy_limits, log_ticks
from fracskip.report.records import Block, Epoch, EvaluationRecord, RunRecord, StaticPoint
from fracskip.report.svg import FONT_PX, add_axes, add_title, drawing, new_figure, to_svg
from fracskip.report.wording import (
    microseconds,
    network_words,
    option_words,
    percent,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDE_PX, HALF_PX, NARROW_PX = 640, 440, 330
MARKERS = ("o", "D", "^", "v", "P", "X")
_OFF_SCALE = 0.15

Measure = Literal["cp", "bitops_ratio"]


def accuracy_cost(
    networks: Sequence[tuple[str, EvaluationRecord]],
    measure: Measure,
    *,
    ident: str,
    narrow: bool = False,
) -> str:
    """Accuracy over cost, log scale: the dynamic networks among their static points.

    A static point more than 15 points of accuracy under every dynamic network is drawn as an arrow
    at the lower edge, with its accuracy in words.

    Args:
        networks: A label and a record for each; all on the same images.
        measure: Which cost: the paper's computation percentage, or the BitOps ratio.
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    dots, off_scale = _dots(networks, measure)
    costs = [dot.cost for dot in dots if dot.cost > 0] or [1.0]
    free = min(costs) / 3  # where a cost of zero stands, on an axis that has no zero
    low_cost, high_cost = free if any(dot.cost == 0 for dot in dots) else min(costs), max(costs)
    room = max((high_cost / low_cost) ** 0.12, 1.15) if high_cost > 1.2 * low_cost else 1.6
    low_cost, high_cost = low_cost / room, high_cost * room
    ends = [end for dot in dots if dot not in off_scale for end in dot.interval]
    low, high = accuracy_limits(ends)
    lower_edge = low + 0.04 * (high - low)

    width, height = (NARROW_PX, 300) if narrow else (HALF_PX, 336)
    name = "Block computation (cp)" if measure == "cp" else "BitOps ratio"
    with drawing(ident):
        figure = new_figure(width, height)
        axes = add_axes(figure, 50, 28, width - 68, height - 72)
        add_title(axes, "Accuracy")
        axes.set_xscale("log")
        axes.set_xlim(low_cost, high_cost)
        axes.set_ylim(low, high)
        percent_ticks(axes.xaxis, log_ticks(low_cost, high_cost, 5 if narrow else 6))
        percent_axis(axes.yaxis)
        axes.grid(visible=True)
        axes.set_xlabel(f"{name}, log scale")

        placer = LabelPlacer(axes, FONT_PX)
        for _, group in groupby(dots, key=lambda dot: dot.network):
            line = sorted((dot.cost or free, dot.accuracy) for dot in group if dot.option)
            if line:
                axes.plot(*zip(*line, strict=True), color=role_colour("faint"), lw=1, zorder=2)
        for dot in dots:
            x, y = dot.cost or free, lower_edge if dot in off_scale else dot.accuracy
            placer.occupy(x, y)
            if dot not in off_scale:
                axes.plot([x, x], dot.interval, color=role_colour("faint"), lw=1.2, zorder=3)
            marker = "s" if dot.option else MARKERS[dot.network % len(MARKERS)]
            axes.plot(
                x,
                y,
                marker="v" if dot in off_scale else marker,
                ms=8 if dot.option else 10,
                color=option_colour(dot.option) if dot.option else role_colour("ink"),
                mec=role_colour("surface"),
                zorder=4 if dot.option else 5,
            )
        for dot in sorted(dots, key=lambda dot: dot.option is not None):
            y = lower_edge if dot in off_scale else dot.accuracy
            text = dot.label + (f": {percent(dot.accuracy)}" if dot in off_scale else "")
            placer.place(dot.cost or free, y, text, "muted" if dot.option else "ink")
        words = "; ".join(
            f"{networks[dot.network][0]}{f', {dot.label}' if dot.option else ''}: "
            f"{percent(dot.accuracy)} at {percent(dot.cost, 2)}"
            for dot in dots
        )
        return to_svg(figure, ident, f"Accuracy over {name}. {words}")


@dataclass(frozen=True)
class _Dot:
    """One point of the accuracy-cost plot; `option` is None for a dynamic network."""

    network: int
    option: str | None
    label: str
    cost: float
    accuracy: float
    interval: tuple[float, float]


def _dots(
    networks: Sequence[tuple[str, EvaluationRecord]], measure: Measure
) -> tuple[list[_Dot], list[_Dot]]:
    """All points, and those among them that are too low to be drawn to scale."""
    dots = []
    for number, (label, record) in enumerate(networks):
        if len(networks) == 1:
            label = network_words(record.checkpoint.options).lower()
        points: list[tuple[str | None, str, EvaluationRecord | StaticPoint]]
        points = [(None, shortened(label, 24), record)]
        points += [(point.option, option_words(point.option), point) for point in record.static]
        for option, words, point in points:
            interval = wilson_interval(point.accuracy, record.images)
            cost = getattr(point, measure)
            dots.append(_Dot(number, option, words, cost, point.accuracy, interval))
    floor = min(record.accuracy for _, record in networks) - _OFF_SCALE
    return dots, [dot for dot in dots if dot.accuracy < floor]


def block_shares(
    blocks: Sequence[Block],
    options: Sequence[str],
    counted: str = "images",
    *,
    ident: str,
    narrow: bool = False,
) -> str:
    """Stacked shares of the options in each gated block, and the entropy of the decisions.

    The wide figure has a column for each block (as figures 12 to 15 of the DFS paper's
    supplement), the narrow one a row.

    Args:
        blocks: In order of execution; at least one.
        options: Their options, ascending.
        counted: What the shares are shares of (see `wording.counted`).
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    places = list(range(len(blocks)))
    entropies = [block.entropy_bits for block in blocks]
    known = [entropy for entropy in entropies if entropy is not None]
    titles: dict[str, str] = {}
    with drawing(ident):
        if narrow:
            length = 19 * len(blocks)
            figure = new_figure(NARROW_PX, length + 54)
            bars_px = 164 if known else 254
            shares_axes = add_axes(figure, 64, 8, bars_px, length)
            side = add_axes(figure, 64 + bars_px + 30, 8, 60, length) if known else None
        else:
            figure = new_figure(WIDE_PX, 376 if known else 280)
            shares_axes = add_axes(figure, 46, 24, WIDE_PX - 56, 210)
            side = add_axes(figure, 46, 266, WIDE_PX - 56, 62) if known else None

        base = [0.0] * len(blocks)
        draw = shares_axes.barh if narrow else shares_axes.bar
        for option in options:
            values = [block.option_share.get(option, 0.0) for block in blocks]
            against: dict[str, Any] = {"left" if narrow else "bottom": base}
            bars = draw(places, values, 0.84, color=option_colour(option), lw=0, **against)
            for place, bar in enumerate(bars):
                gid = f"{option}.{place}"
                bar.set_gid(gid)
                titles[gid] = (
                    f"{blocks[place].name}: {option_words(option)} {percent(values[place])}"
                )
            base = [low + value for low, value in zip(base, values, strict=True)]
        if side is not None:
            heights = [entropy or 0.0 for entropy in entropies]
            (side.barh if narrow else side.bar)(places, heights, 0.84, color=role_colour("faint"))

        for axes in filter(None, (shares_axes, side)):
            place_axis, value_axis = (
                (axes.yaxis, axes.xaxis) if narrow else (axes.xaxis, axes.yaxis)
            )
            axes.spines["left" if narrow else "bottom"].set_visible(axes is not shares_axes)
            limits = (len(blocks) - 0.5, -0.5) if narrow else (-0.5, len(blocks) - 0.5)
            (axes.set_ylim if narrow else axes.set_xlim)(*limits)
            if axes is shares_axes:
                (axes.set_xlim if narrow else axes.set_ylim)(0, 1)
                percent_ticks(value_axis, (0, 0.5, 1) if narrow else (0, 0.25, 0.5, 0.75, 1))
                name = f"Share of {counted}"
            else:
                top = _entropy_top(max(known))
                (axes.set_xlim if narrow else axes.set_ylim)(0, top)
                value_axis.set_ticks([0, top])
                value_axis.set_ticklabels(["0", f"{top:g}"])
                name = "Entropy (bits)"
            if narrow:
                value_axis.set_label_text(name)
            else:
                add_title(axes, name)
            place_axis.set_tick_params(length=0)
            if axes is (shares_axes if narrow else side or shares_axes):
                _block_ticks(place_axis, blocks, narrow=narrow)
            else:
                place_axis.set_ticks([])
        label = f"Share of {counted} that take each option, for {len(blocks)} gated blocks"
        return to_svg(figure, ident, f"{label}; the numbers follow in a table", titles)


def _entropy_top(highest: float) -> float:
    """A round end for the entropy's axis."""
    return next((top for top in (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0) if top >= highest), 4.0)


def _block_ticks(axis: Axis, blocks: Sequence[Block], *, narrow: bool) -> None:
    names = [block.name for block in blocks]
    short = [name.removeprefix("layer") for name in names]
    if short != names and max(map(len, short)) <= 4:
        names, prefix = short, "layer."
    else:
        prefix = ""
    every = 1 if narrow else math.ceil(len(names) / 45)
    upright = not narrow and max(map(len, names)) * 7.5 > (WIDE_PX - 66) / len(names) * every
    axis.set_ticks(list(range(0, len(names), every)))
    axis.set_ticklabels(
        [shortened(name, 8) for name in names[::every]], rotation=90 if upright else 0
    )
    if not narrow:
        axis.set_label_text(f"Gated block ({prefix}index)" if prefix else "Gated block")


def training_curves(run: RunRecord, *, ident: str, narrow: bool = False) -> str:
    """Loss, accuracy and computation over the epochs, training and validation.

    Args:
        run: With at least one epoch.
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    epochs = run.epochs
    panels: list[tuple[str, list[float | None], list[float | None]]] = [
        ("Loss", [e.loss for e in epochs], [_validation(e, "loss") for e in epochs]),
        ("Accuracy", [e.accuracy for e in epochs], [_validation(e, "accuracy") for e in epochs]),
        ("Computation (cp)", [e.cp for e in epochs], [_validation(e, "cp") for e in epochs]),
    ]
    panels = [panel for panel in panels if any(v is not None for v in (*panel[1], *panel[2]))]
    width, panel_px, gap = (NARROW_PX, 118, 30) if narrow else (WIDE_PX, 124, 30)
    bottom = 36
    with drawing(ident):
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(width, len(panels) * (panel_px + gap) + bottom)
        for number, (name, train, validation) in enumerate(panels):
            top = gap - 4 + number * (panel_px + gap)
            axes = add_axes(figure, 46, top, width - 60, panel_px)
            last = len(epochs)
            axes.set_xlim(0.5, last + 0.5)
            add_title(axes, name)
            axes.grid(visible=True, axis="y")
            for curve, style in ((train, "faint"), (validation, "ink")):
                _curve(axes, curve, role_colour(style), dashed=style == "faint")
            values = [v for v in (*train, *validation) if v is not None]
            if name.startswith("Comp") and 0 < min(values) < max(values) / 4:
                axes.set_yscale("log")
                low, high = min(values) / 1.3, max(max(values), 0.5) * 1.3
                axes.set_ylim(low, high)
                percent_ticks(axes.yaxis, log_ticks(low, high, 4))
            elif name == "Loss":
                axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
                axes.set_ylim(bottom=min(0.0, *values))
            else:
                percent_axis(axes.yaxis)
            _stages(axes, epochs, width - 60, with_names=number == 0)
            is_last = number == len(panels) - 1
            axes.xaxis.set_major_locator(
                MaxNLocator(5 if narrow else 9, steps=[1, 2, 5, 10], integer=True)
            )
            axes.tick_params(axis="x", labelbottom=is_last)
            if is_last:
                axes.set_xlabel("Epoch, over all stages")
        names = ", ".join(name for name, _, _ in panels)
        return to_svg(figure, ident, f"{names} over {len(epochs)} epochs of run {run.name}")


def _validation(epoch: Epoch, key: str) -> float | None:
    return None if epoch.validation is None else getattr(epoch.validation, key)


def _curve(axes: Axes, values: Sequence[float | None], colour: str, *, dashed: bool) -> None:
    known = sum(value is not None for value in values)
    if known:
        # The line ends where nothing is known: gates are trained without an accuracy.
        ys = [math.nan if value is None else value for value in values]
        xs, marker = range(1, len(values) + 1), "o" if known <= 3 else None
        axes.plot(
            xs, ys, color=colour, lw=1.6, ls=(0, (3, 1.5)) if dashed else "-", marker=marker, ms=4
        )


def _stages(axes: Axes, epochs: Sequence[Epoch], width_px: float, *, with_names: bool) -> None:
    """Shades every other stage and marks where one gives way to the next."""
    begin = 0.5
    for number, (stage, group) in enumerate(groupby(epochs, key=lambda epoch: epoch.stage)):
        end = begin + len(list(group))
        if number % 2 == 0:
            axes.axvspan(begin, end, color=role_colour("band"), lw=0, zorder=0)
        if number:
            axes.axvline(begin, color=role_colour("faint"), lw=0.8, ls=(0, (1, 2)), zorder=1)
        room_px = (end - begin) / len(epochs) * width_px
        if with_names and room_px > 8 * len(stage):
            axes.annotate(
                stage,
                ((begin + end) / 2, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, -4),
                textcoords="offset points",
                ha="center",
                va="top",
                color=role_colour("muted"),
            )
        begin = end


def percent_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Puts ticks at these shares, as percentages."""
    _only_ticks(axis, ticks, [f"{100 * tick:g}%" for tick in ticks])


def time_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Puts ticks at these latencies in microseconds."""
    _only_ticks(axis, ticks, [microseconds(tick) for tick in ticks])


def _only_ticks(axis: Axis, ticks: Sequence[float], words: Sequence[str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(list(words)))
    axis.set_minor_locator(NullLocator())


def percent_axis(axis: Axis) -> None:
    """Labels an axis of shares with percentages."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
