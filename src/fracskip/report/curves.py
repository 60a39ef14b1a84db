"""Accuracy over cost: networks that serve every budget among networks trained for one cost each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fracskip.errors import DataError
from fracskip.intervals import wilson_interval
from fracskip.report.figures import percent_axis, percent_ticks
from fracskip.report.palette import option_colour, role_colour
from fracskip.report.placement import LabelPlacer, log_ticks
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord
from fracskip.report.svg import FONT_PX, add_axes, add_title, drawing, new_figure, to_svg
from fracskip.report.wording import option_words, percent

WIDTH, HEIGHT = 760, 440
FULL_BITOPS = 32 * 32  # of a multiplication in full precision
_OFF_SCALE = 0.06  # below the best accuracy; what lies lower is drawn as an arrow at the edge
_MARKERS = ("o", "s", "D", "^", "P", "X", "<")  # "v" points at what lies below the scale


@dataclass(frozen=True)
class Spot:
    """A measured point.

    Attributes:
        cost: On the figure's axis.
        accuracy: Share of images classified correctly.
        label: What to call it, '' for nothing.
        option: Whose colour it gets, '' for its curve's.
    """

    cost: float
    accuracy: float
    label: str = ""
    option: str = ""


@dataclass(frozen=True)
class Curve:
    """What belongs together, joined by a line; of one spot or more.

    Attributes:
        label: What it is, in a few words.
        spots: By cost.
    """

    label: str
    spots: tuple[Spot, ...]


class CostAxis:
    """Which cost a figure compares: of the gated blocks, or of everything that is executed.

    The former is the computation percentage, a share of the same network's in full precision. The
    latter are BitOps (MACs x bits of weights x bits of activations) for one image, gates and stem
    included, so that networks of different depths can stand in one figure.

    Args:
        macs: Of each plain network by its model's name; None for the former.
    """

    def __init__(self, macs: Mapping[str, int] | None = None) -> None:
        self._macs = macs

    @property
    def label(self) -> str:
        """The axis in words."""
        if self._macs is None:
            return "Block computation (cp), log scale"
        return "Everything executed for one image, billions of BitOps, log scale"

    def words(self, cost: float) -> str:
        """A cost in words."""
        return percent(cost, 2) if self._macs is None else f"{cost:.3g} billion BitOps"

    def cost(self, model: str, cp: float, bitops_ratio: float) -> float:
        """A measurement's place on the axis.

        Raises:
            DataError: if the model's MACs are not known.
        """
        if self._macs is None:
            return cp
        if not self._macs.get(model):
            raise DataError(
                f"no record says how many MACs a {model} has: evaluate one with this fracskip"
            )
        return bitops_ratio * self._macs[model] * FULL_BITOPS / 1e9


def known_macs(records: Sequence[RunRecord | SweepRecord | EvaluationRecord]) -> dict[str, int]:
    """The MACs of each model that the records know of; older ones do not say."""
    tests = [record.test if isinstance(record, RunRecord) else record for record in records]
    checkpoints = [test.checkpoint for test in tests if test is not None]
    return {each.model: each.macs for each in checkpoints if each.macs}


def swept(record: SweepRecord, label: str, axis: CostAxis) -> Curve:
    """A network at several budgets."""
    model = record.checkpoint.model
    spots = (
        Spot(axis.cost(model, point.cp, point.bitops_ratio), point.accuracy)
        for point in record.points
    )
    return Curve(label, tuple(sorted(spots, key=lambda spot: spot.cost)))


def trained_alone(runs: Sequence[RunRecord], label: str, axis: CostAxis) -> Curve:
    """Networks that were each trained for one cost.

    Raises:
        DataError: if a run has not ended.
    """
    spots = []
    for run in runs:
        if run.test is None:
            raise DataError(f"the run {run.name} has not ended: it has no test figures")
        test, options = run.test, run.test.checkpoint.options
        option = options[0] if len(options) == 1 else ""
        cost = axis.cost(test.checkpoint.model, test.cp, test.bitops_ratio)
        spots.append(Spot(cost, test.accuracy, option_words(option) if option else "", option))
    return Curve(label, tuple(sorted(spots, key=lambda spot: spot.cost)))


def accuracy_curves(
    curves: Sequence[Curve], axis: CostAxis, images: int, *, ident: str = "curve"
) -> str:
    """Accuracy over cost, log scale; the first curve with 95% intervals.

    Spots far below the best are drawn as arrows at the lower edge, with their accuracy.

    Args:
        curves: The one that the figure is about, then what it is compared with.
        axis: Of their costs.
        images: How many each accuracy was measured on.
        ident: Identifies the figure in its page.
    """
    everything = [spot for curve in curves for spot in curve.spots if spot.cost > 0]
    best = max(spot.accuracy for spot in everything)
    low, high = best - _OFF_SCALE, min(best + 0.01, 1.0)
    left, right = (pick(spot.cost for spot in everything) for pick in (min, max))
    left, right = left / 1.3, right * 1.3
    with drawing(ident):
        from matplotlib.lines import Line2D

        handles: list[Line2D] = []
        figure = new_figure(WIDTH, HEIGHT)
        axes = add_axes(figure, 56, 28, WIDTH - 74, HEIGHT - 72)
        add_title(axes, "Accuracy")
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        ticks = log_ticks(left, right, 7)
        if axis.label.startswith("Block"):
            percent_ticks(axes.xaxis, ticks)
        else:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        percent_axis(axes.yaxis)
        axes.grid(visible=True)
        axes.set_xlabel(axis.label)
        placer = LabelPlacer(axes, FONT_PX)
        for spot in everything:
            placer.occupy(spot.cost, max(spot.accuracy, low))
        for rank, curve in enumerate(curves):
            colour = role_colour("faint" if rank else "ink")
            spots = [spot for spot in curve.spots if spot.cost > 0]
            line = [(spot.cost, spot.accuracy) for spot in spots]
            marker = _MARKERS[rank % len(_MARKERS)]
            style: Any = {"color": colour, "ls": "-" if not rank else (0, (4, 2 * rank))}
            axes.plot(*zip(*line, strict=True), **style, zorder=3 - rank / 10)
            handles.append(Line2D([], [], marker=marker, ms=8, label=curve.label, **style))
            for spot in spots:
                visible = spot.accuracy > low
                y = spot.accuracy if visible else low + 0.02 * (high - low)
                if not rank and visible:
                    interval = wilson_interval(spot.accuracy, images)
                    axes.plot([spot.cost] * 2, interval, color=role_colour("faint"), lw=1.2)
                shade = option_colour(spot.option) if spot.option else colour
                axes.plot(spot.cost, y, marker if visible else "v", ms=8, color=shade, zorder=5)
                text = spot.label + ("" if visible else f" {percent(spot.accuracy, 2)}")
                if text:
                    placer.place(spot.cost, y, text.strip(), "muted")
        axes.legend(handles=handles, loc="lower right", frameon=False)
        words = ". ".join(
            f"{curve.label}: "
            + ", ".join(f"{percent(s.accuracy, 2)} at {axis.words(s.cost)}" for s in curve.spots)
            for curve in curves
        )
        return to_svg(figure, ident, f"Accuracy over cost. {words}")
