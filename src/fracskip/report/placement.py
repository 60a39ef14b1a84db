"""Where a figure's ticks and labels go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fracskip.report.palette import role_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHARACTER = 0.58  # mean width of a character, in font sizes
_MARKER_PX = 12.0
_APART_PX = 4.0  # how far a label stays from the markers of other points
_Box = tuple[float, float, float, float]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round places on a logarithmic axis, at most `most` of them.

    >>> log_ticks(0.018, 1.2, 6)
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    >>> log_ticks(0.018, 1.2, 4)
    [0.03, 0.1, 0.3, 1.0]
    >>> log_ticks(0.058, 0.11, 6)
    [0.06, 0.07, 0.08, 0.09, 0.1]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (tuple(range(1, 10)), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else [low, high]


def accuracy_limits(ends: Iterable[float]) -> tuple[float, float]:
    """Limits of an axis of accuracies: some room around the ends of their intervals.

    >>> [round(end, 6) for end in accuracy_limits([0.9, 0.92])]
    [0.896, 0.924]
    >>> [round(end, 6) for end in accuracy_limits([0.9, 1.0])]
    [0.89, 1.005]
    """
    ends = sorted(ends)
    margin = max(0.1 * (ends[-1] - ends[0]), 0.004)
    return ends[0] - margin, min(ends[-1] + margin, 1 + margin / 2)


class LabelPlacer:
    """Puts labels beside points: clear of one another, and nearer to their own than to others.

    A label for which no side is free is left out: the table has its numbers.

    Attributes:
        axes: With final limits and scales.
        font_px: Size of the labels.
    """

    def __init__(self, axes: Axes, font_px: float) -> None:
        self.axes = axes
        self.font_px = font_px
        self._markers: list[_Box] = []
        self._labels: list[_Box] = []
        self._lines: list[_Box] = []

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        column, row = self.axes.transData.transform((x, y))
        return float(column), float(row)

    def _marker(self, x: float, y: float) -> _Box:
        column, row = self._pixel(x, y)
        half = _MARKER_PX / 2
        return column - half, row - half, column + half, row + half

    def occupy(self, x: float, y: float) -> None:
        """Keeps labels off the marker at this point."""
        self._markers.append(self._marker(x, y))

    def occupy_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keeps labels off the straight lines from each point to the next."""
        corners = [self._pixel(*point) for point in points]
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            steps = math.ceil(math.hypot(x1 - x0, y1 - y0) / _MARKER_PX)
            for step in range(1, steps):
                x, y = x0 + step / steps * (x1 - x0), y0 + step / steps * (y1 - y0)
                self._lines.append((x - 1, y - _MARKER_PX / 2, x + 1, y + _MARKER_PX / 2))

    def place(self, x: float, y: float, text: str, role: str) -> bool:
        """Labels the point; returns whether there was room."""
        column, row = self._pixel(x, y)
        width, height = len(text) * _CHARACTER * self.font_px, 1.15 * self.font_px
        gap, near, far = _MARKER_PX / 2 + 1, _MARKER_PX / 4, 1.4 * _MARKER_PX
        sides = (
            ("left", "bottom", near, gap),
            ("left", "top", near, -gap),
            ("right", "bottom", -near, gap),
            ("right", "top", -near, -gap),
            ("left", "center", gap, 0.0),
            ("right", "center", -gap, 0.0),
            ("center", "bottom", 0.0, gap),
            ("center", "top", 0.0, -gap),
            ("center", "bottom", 0.0, far),
            ("center", "top", 0.0, -far),
        )
        own = self._marker(x, y)
        taken = [*self._labels, *self._lines, own]
        taken += [_grown(marker, _APART_PX) for marker in self._markers if marker != own]
        frame = self.axes.bbox
        for horizontal, vertical, dx, dy in sides:
            left = column + dx - {"left": 0.0, "center": width / 2, "right": width}[horizontal]
            low = row + dy - {"bottom": 0.0, "center": height / 2, "top": height}[vertical]
            box = (left, low, left + width, low + height)
            inside = (
                frame.x0 <= box[0] and box[2] <= frame.x1 + 12 and frame.y0 <= box[1]
            ) and box[3] <= frame.y1 + 8
            if inside and not any(_overlap(box, other) for other in taken):
                self._labels.append(box)
                self.axes.annotate(
                    text,
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha=horizontal,
                    va=vertical,
                    color=role_colour(role),
                    zorder=6,
                )
                return True
        return False


def _grown(box: _Box, by: float) -> _Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
