"""Figures of a sweep: accuracy and option shares over the budget."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from fracskip.intervals import wilson_interval
from fracskip.report.figures import HALF_PX, NARROW_PX, percent_axis, percent_ticks
from fracskip.report.palette import option_colour, role_colour
from fracskip.report.placement import accuracy_limits, log_ticks
from fracskip.report.records import SweepRecord
from fracskip.report.svg import add_axes, add_title, drawing, new_figure, to_svg
from fracskip.report.wording import option_words, percent, share_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLOCKS_PX, BLOCK_COLUMNS = 760, 5


def accuracy_budget(record: SweepRecord, *, ident: str, narrow: bool = False) -> str:
    """Accuracy over the realised cost, log scale, with 95% intervals.

    Args:
        record: The sweep.
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    points = record.points
    intervals = [wilson_interval(point.accuracy, record.images) for point in points]
    with drawing(ident):
        figure, axes = _over_cost(record, "Accuracy", narrow)
        axes.set_ylim(*accuracy_limits(itertools.chain(*intervals)))
        percent_axis(axes.yaxis)
        axes.grid(visible=True)
        costs = [_drawn(point.cp) for point in points]
        axes.plot(costs, [point.accuracy for point in points], color=role_colour("ink"), zorder=3)
        for cost, point, interval in zip(costs, points, intervals, strict=True):
            axes.plot([cost] * 2, interval, color=role_colour("faint"), lw=1.2, zorder=2)
            axes.plot(cost, point.accuracy, "o", ms=7, color=role_colour("ink"), zorder=4)
        words = "; ".join(f"{percent(p.accuracy)} at {percent(p.cp, 2)}" for p in points)
        return to_svg(figure, ident, f"Accuracy over block computation. {words}")


def option_shares(record: SweepRecord, *, ident: str, narrow: bool = False) -> str:
    """Shares of the options over the realised cost, as stacked areas.

    Args:
        record: The sweep.
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    points, options = record.points, record.checkpoint.options
    with drawing(ident):
        figure, axes = _over_cost(record, "Share of decisions", narrow)
        axes.set_ylim(0, 1)
        percent_ticks(axes.yaxis, (0, 0.25, 0.5, 0.75, 1))
        costs = [_drawn(point.cp) for point in points]
        shares = [[point.option_share.get(label, 0.0) for point in points] for label in options]
        axes.stackplot(costs, shares, colors=[option_colour(label) for label in options], lw=0)
        words = "; ".join(
            f"at {percent(point.cp, 2)}: "
            + ", ".join(f"{option_words(o)} {percent(s)}" for o, s in point.option_share.items())
            for point in points
        )
        return to_svg(figure, ident, f"Share of decisions over block computation. {words}")


def shares_by_block(record: SweepRecord, *, ident: str) -> str:
    """Shares of the options over the realised cost in each gated block, as small stacked areas.

    Args:
        record: The sweep; its points hold their blocks.
        ident: Identifies the figure in its page.
    """
    points, options = record.points, record.checkpoint.options
    names = [block.name for block in points[0].blocks]
    costs = [_drawn(point.cp) for point in points]
    rows = -(-len(names) // BLOCK_COLUMNS)
    across, down = (BLOCKS_PX - 50) / BLOCK_COLUMNS, 96
    height = 24 + rows * down + 44
    with drawing(ident):
        from matplotlib.patches import Patch

        figure = new_figure(BLOCKS_PX, height)
        for index, name in enumerate(names):
            row, column = divmod(index, BLOCK_COLUMNS)
            place = (50 + column * across, 24 + row * down, across - 14, down - 26)
            axes = add_axes(figure, *place)
            add_title(axes, name)
            axes.set_xscale("log")
            axes.set_xlim(min(costs), max(costs))
            axes.set_ylim(0, 1)
            shares = [
                [point.blocks[index].option_share.get(label, 0.0) for point in points]
                for label in options
            ]
            axes.stackplot(costs, shares, colors=[option_colour(label) for label in options], lw=0)
            percent_ticks(axes.yaxis, () if column else (0, 0.5, 1))
            last = index + BLOCK_COLUMNS >= len(names)
            ticks = log_ticks(min(costs), max(costs), 3) if last else ()
            percent_ticks(axes.xaxis, ticks)
        handles = [Patch(color=option_colour(o), label=option_words(o)) for o in options]
        figure.legend(
            handles=handles, loc="lower right", ncols=len(options), frameon=False, handlelength=1
        )
        middle = points[len(points) // 2]
        words = "; ".join(f"{b.name}: {share_words(b.option_share)}" for b in middle.blocks)
        return to_svg(
            figure,
            ident,
            f"Share of decisions in each block over block computation; at {percent(middle.cp, 2)}: "
            f"{words}",
        )


def _drawn(cost: float) -> float:
    return max(cost, 1e-5)  # a log scale has no zero


def _over_cost(record: SweepRecord, title: str, narrow: bool) -> tuple[Figure, Axes]:
    width, height = (NARROW_PX, 300) if narrow else (HALF_PX, 336)
    figure = new_figure(width, height)
    axes = add_axes(figure, 50, 28, width - 68, height - 72)
    costs = [_drawn(point.cp) for point in record.points]
    room = 1.05 if max(costs) > 1.2 * min(costs) else 1.6
    low, high = min(costs) / room, max(costs) * room
    add_title(axes, title)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    percent_ticks(axes.xaxis, log_ticks(low, high, 5 if narrow else 6))
    axes.set_xlabel("Block computation (cp), log scale")
    return figure, axes
