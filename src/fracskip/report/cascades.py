"""The figure of a cascade: accuracy over mean latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fracskip.report.cascade_records import CascadeRecord
from fracskip.report.figures import NARROW_PX, WIDE_PX, percent_axis, time_ticks
from fracskip.report.palette import role_colour
from fracskip.report.placement import LabelPlacer, accuracy_limits, log_ticks
from fracskip.report.svg import FONT_PX, add_axes, add_title, drawing, new_figure, to_svg
from fracskip.report.wording import chain_words, microseconds, percent, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_ABOVE = 5.0  # ratio of the longest time to the shortest from which on the axis is logarithmic
_OFF_SCALE = 0.15
_NAME_CHARACTERS = 24
Kind = Literal["member", "point", "random"]


@dataclass(frozen=True)
class _Mark:
    """What is drawn at one place.

    Attributes:
        kind: A member alone, an operating point, or its control.
        words: What it is.
        label: What is written beside it, '' for nothing.
        interval: Of the accuracy; None for a control, which was computed.
    """

    kind: Kind
    words: str
    label: str
    latency: float
    accuracy: float
    interval: tuple[float, float] | None


def cascade_accuracy(record: CascadeRecord, *, ident: str, narrow: bool = False) -> str:
    """Accuracy over mean latency: members alone, operating points, and escalation at random.

    The axis of latency is logarithmic where the longest is over five times the shortest. What lies
    more than 15 points of accuracy under the best is drawn as an arrow at the lower edge, with its
    accuracy in words.

    Args:
        record: Of a cascade.
        ident: Identifies the figure in its page.
        narrow: Draw for a phone.
    """
    marks = _marks(record)
    floor = max(mark.accuracy for mark in marks) - _OFF_SCALE
    low, high = accuracy_limits(
        end for mark in marks if mark.accuracy >= floor for end in mark.interval or (mark.accuracy,)
    )
    edge = low + 0.04 * (high - low)
    width, height = (NARROW_PX, 300) if narrow else (WIDE_PX, 300)
    titles: dict[str, str] = {}
    with drawing(ident):
        figure = new_figure(width, height)
        axes = add_axes(figure, 50, 28, width - 72, height - 72)
        add_title(axes, "Accuracy")
        axes.set_ylim(low, high)
        percent_axis(axes.yaxis)
        axes.grid(visible=True)
        _time_axis(axes, [mark.latency for mark in marks], narrow)

        points = [mark for mark in marks if mark.kind == "point" and mark.accuracy >= floor]
        line = sorted((mark.latency, mark.accuracy) for mark in points)
        if len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=role_colour("ink"), lw=1.2, zorder=3)
        placer = LabelPlacer(axes, FONT_PX)
        placer.occupy_line(line)
        for number, mark in enumerate(marks):
            visible = mark.accuracy >= floor
            y = mark.accuracy if visible else edge
            placer.occupy(mark.latency, y)
            if visible and mark.interval is not None:
                axes.plot(
                    [mark.latency] * 2, mark.interval, color=role_colour("faint"), lw=1.2, zorder=2
                )
            gid = f"mark.{number}"
            titles[gid] = f"{mark.words}: {percent(mark.accuracy)} in {microseconds(mark.latency)}"
            _draw(axes, mark, y, visible, gid)
        # Members have names and the rest one label a kind: members are hardest to tell apart.
        for mark in sorted(marks, key=lambda mark: mark.kind != "member"):
            if mark.label:
                visible = mark.accuracy >= floor
                text = mark.label + ("" if visible else f": {percent(mark.accuracy)}")
                role = "ink" if mark.kind == "point" else "muted"
                placer.place(mark.latency, mark.accuracy if visible else edge, text, role)
        words = "; ".join(titles.values())
        return to_svg(figure, ident, f"Accuracy over mean latency of an image. {words}", titles)


def _marks(record: CascadeRecord) -> list[_Mark]:
    found = [
        _Mark(
            "member",
            f"{member.words} alone",
            f"{shortened(member.name, _NAME_CHARACTERS)} {member.setting}",
            member.latency_us.mean,
            member.accuracy,
            member.accuracy_95,
        )
        for member in record.members
    ]
    best = max(record.points, key=lambda point: point.accuracy)
    controls: list[_Mark] = []
    for point in record.points:
        words, latency = chain_words(point.chain), point.latency_us.mean
        label = "operating points" if point is best else ""
        found.append(_Mark("point", words, label, latency, point.accuracy, point.accuracy_95))
        if point.random_escalation is not None:
            label = "" if controls else "escalated at random"
            controls.append(
                _Mark(
                    "random",
                    f"{words}, escalated at random",
                    label,
                    latency,
                    point.random_escalation,
                    None,
                )
            )
    return found + controls


def _draw(axes: Axes, mark: _Mark, y: float, visible: bool, gid: str) -> None:
    shape = {"member": "s", "point": "o", "random": "o"}[mark.kind]
    is_open = mark.kind == "random"
    colour = role_colour("ink" if mark.kind == "point" else "muted")
    (drawn,) = axes.plot(
        mark.latency,
        y,
        marker=shape if visible else "v",
        ms={"member": 8, "point": 8, "random": 5}[mark.kind],
        color=colour,
        mfc=role_colour("surface") if is_open else colour,
        mec=colour if is_open else role_colour("surface"),
        zorder={"member": 4, "point": 6, "random": 5}[mark.kind],
    )
    drawn.set_gid(gid)


def _time_axis(axes: Axes, times: list[float], narrow: bool) -> None:
    shortest, longest = min(times), max(times)
    label = "Mean latency of an image"
    if longest > LOG_ABOVE * shortest:
        room = (longest / shortest) ** 0.1
        left, right = shortest / room, longest * room
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        time_ticks(axes.xaxis, log_ticks(left, right, 5 if narrow else 7))
        label += ", log scale"
    else:
        from matplotlib.ticker import MaxNLocator

        room = max(0.12 * (longest - shortest), 0.05 * longest)
        left, right = shortest - min(room, shortest / 2), longest + room
        axes.set_xlim(left, right)
        ticks = MaxNLocator(4 if narrow else 7, steps=[1, 2, 2.5, 5, 10]).tick_values(left, right)
        time_ticks(axes.xaxis, [tick for tick in ticks if left <= tick <= right])
    axes.set_xlabel(label)
