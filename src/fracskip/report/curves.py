"""One network's whole curve among networks that were each trained for one cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fracskip.report.figures import percent_axis, percent_ticks, wilson_interval
from fracskip.report.palette import option_colour, role_colour
from fracskip.report.placement import LabelPlacer, log_ticks
from fracskip.report.records import RunRecord, SweepRecord
from fracskip.report.svg import FONT_PX, add_axes, drawing, new_figure, to_svg
from fracskip.report.wording import percent

WIDTH, HEIGHT = 760, 420
_TITLE: Any = {"loc": "left", "fontsize": FONT_PX, "color": role_colour("ink"), "pad": 6}
_OFF_SCALE = 0.06  # below the best accuracy; what lies lower is drawn as an arrow at the edge


@dataclass(frozen=True)
class Rival:
    """A network trained for one cost.

    Attributes:
        label: What it is, in a word or two.
        cp: Its computation share.
        accuracy: On the sweep's images.
        option: Whose colour it gets; '' for none.
    """

    label: str
    cp: float
    accuracy: float
    option: str = ""


def rival_of(run: RunRecord) -> Rival | None:
    """A finished run as a rival; None if it has not ended."""
    if run.test is None:
        return None
    options = run.test.checkpoint.options
    if len(options) == 1:
        return Rival(f"static {options[0]} bits", run.test.cp, run.test.accuracy, options[0])
    return Rival(run.name, run.test.cp, run.test.accuracy)


def accuracy_curve(sweep: SweepRecord, rivals: Sequence[Rival], *, ident: str = "curve") -> str:
    """Accuracy over block computation, log scale: a sweep as a line, rivals as points.

    Args:
        sweep: The network at several budgets.
        rivals: What else could run.
        ident: Identifies the figure in its page.
    """
    points = [(point.cp, point.accuracy) for point in sweep.points if point.cp > 0]
    everyone = points + [(rival.cp, rival.accuracy) for rival in rivals if rival.cp > 0]
    best = max(accuracy for _, accuracy in everyone)
    low, high = best - _OFF_SCALE, min(best + 0.01, 1.0)
    left, right = (pick(cost for cost, _ in everyone) for pick in (min, max))
    with drawing(ident):
        figure = new_figure(WIDTH, HEIGHT)
        axes = add_axes(figure, 56, 28, WIDTH - 74, HEIGHT - 72)
        axes.set_title("Accuracy", **_TITLE)
        axes.set_xscale("log")
        axes.set_xlim(left / 1.3, right * 1.3)
        axes.set_ylim(low, high)
        percent_ticks(axes.xaxis, log_ticks(left / 1.3, right * 1.3, 7))
        percent_axis(axes.yaxis)
        axes.grid(visible=True)
        axes.set_xlabel("Block computation (cp), log scale")
        axes.plot(*zip(*points, strict=True), color=role_colour("ink"), zorder=3)
        placer = LabelPlacer(axes, FONT_PX)
        for cost, accuracy in points:
            if accuracy > low:
                interval = wilson_interval(accuracy, sweep.images)
                axes.plot([cost] * 2, interval, color=role_colour("faint"), lw=1.2, zorder=2)
                axes.plot(cost, accuracy, "o", ms=7, color=role_colour("ink"), zorder=4)
                placer.occupy(cost, accuracy)
        for rival in rivals:
            placer.occupy(rival.cp, max(rival.accuracy, low))
        for rival in rivals:
            visible = rival.accuracy > low
            y = rival.accuracy if visible else low + 0.02 * (high - low)
            colour = option_colour(rival.option) if rival.option else role_colour("wrong")
            axes.plot(rival.cp, y, "s" if visible else "v", ms=8, color=colour, zorder=5)
            text = rival.label + ("" if visible else f": {percent(rival.accuracy, 2)}")
            placer.place(rival.cp, y, text, "muted")
        dearest = max(points)
        placer.place(*dearest, "one network, every budget", "ink")
        words = "; ".join(f"{percent(a, 2)} at {percent(c, 2)}" for c, a in points)
        beside = "; ".join(
            f"{r.label}: {percent(r.accuracy, 2)} at {percent(r.cp, 2)}" for r in rivals
        )
        return to_svg(
            figure, ident, f"Accuracy over block computation. {words}. Beside it: {beside}"
        )
