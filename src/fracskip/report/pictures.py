"""The images that cost least and most, as one SVG element."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from fracskip.report.records import EvaluationRecord, Example
from fracskip.report.wording import cost

CELL, PICTURE, LINE, TITLE, GAP = 78, 64, 15, 24, 14  # pixels
BARS = 8  # height of an allocation's bars


def cheapest_and_dearest(record: EvaluationRecord, count: int = 10) -> str:
    """Two rows of pictures, each with its class, what it cost, and what its blocks executed.

    Args:
        record: With examples, and their pictures (`pixels.with_pictures`).
        count: Pictures a row, as far as the record has them.

    Returns:
        An `<svg>` element for a page, or for `svg.standalone`.
    """
    rows = {
        "cost least": record.examples.cheapest[:count],
        "cost most": record.examples.dearest[:count],
    }
    across = max(map(len, rows.values()), default=0)
    each = TITLE + PICTURE + 3 * LINE + 2 * (BARS + 2) + GAP
    width, height = max(1, across) * CELL, len(rows) * each
    root = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "aria-label": "; ".join(_in_words(name, row) for name, row in rows.items()),
        },
    )
    for line, (name, row) in enumerate(rows.items()):
        top = line * each
        _text(root, 0, top + LINE, f"The images that {name}", "ink")
        for place, example in enumerate(row):
            _cell(root, record, example, place * CELL, top + TITLE)
    return ElementTree.tostring(root, encoding="unicode")


def _in_words(name: str, row: Sequence[Example]) -> str:
    named = ", ".join(f"{one.label} {cost(one.cp)}" for one in row)
    return f"images that {name}: {named or 'none'}"


def _cell(
    root: ElementTree.Element, record: EvaluationRecord, example: Example, left: int, top: int
) -> None:
    if example.png is not None:
        ElementTree.SubElement(
            root,
            "image",
            {
                "x": str(left),
                "y": str(top),
                "width": str(PICTURE),
                "height": str(PICTURE),
                "href": f"data:image/png;base64,{example.png}",
                "style": "image-rendering:pixelated",
            },
        )
    below = top + PICTURE
    _text(root, left, below + LINE, example.label, "ink")
    taken = "" if example.is_right else f"✗ {example.predicted}"
    _text(root, left, below + 2 * LINE, taken, "muted")
    _text(root, left, below + 3 * LINE, cost(example.cp), "muted")
    place = below + 3 * LINE + 4
    for allocation in example.allocations:
        _bars(root, allocation, record.checkpoint.options, left, place)
        place += BARS + 2


def _bars(
    root: ElementTree.Element,
    allocation: Sequence[str],
    options: Sequence[str],
    left: int,
    top: int,
) -> None:
    """One bar a block, taller for dearer options."""
    step = PICTURE / len(allocation)
    for index, label in enumerate(allocation):
        tall = BARS * (options.index(label) + 1) / len(options)
        ElementTree.SubElement(
            root,
            "rect",
            {
                "x": f"{left + index * step:.2f}",
                "y": f"{top + BARS - tall:.2f}",
                "width": f"{step * 0.8:.2f}",
                "height": f"{tall:.2f}",
                "fill": f"var(--o-{label})",
            },
        )


def _text(root: ElementTree.Element, x: int, y: int, words: str, role: str) -> None:
    element = ElementTree.SubElement(
        root,
        "text",
        {
            "x": str(x),
            "y": str(y - 3),
            "font-size": "12",
            "font-family": "sans-serif",
            "fill": f"var(--{role})",
        },
    )
    element.text = words
