"""matplotlib figures as SVG elements that can live together in one HTML page.

Nothing here or in `fracskip.report.figures` touches pyplot or leaves a trace in matplotlib's
global settings, and equal figures give equal text: no dates, no random identifiers.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fracskip.report.extras import report_extra
from fracskip.report.palette import css_colours, role_colour, to_css

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One unit of a figure is one CSS pixel: 72 dots per inch, and a point is a dot.
DPI = 72
FONT_PX = 12
_GROUPS = frozenset(
    "axes figure font grid hatch legend lines markers mathtext patch path savefig svg text "
    "xaxis xtick yaxis ytick".split()
)
_REFERENCE = re.compile(r"#([\w.-]+)(?=\)|$)")


@contextmanager
def drawing(ident: str) -> Iterator[None]:
    """Draws with the report's settings, whatever the caller's are; `ident` salts identifiers."""
    with report_extra():
        import matplotlib

    defaults: Any = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if key.split(".")[0] in _GROUPS
    }
    ink, muted, grid = (role_colour(role) for role in ("ink", "muted", "grid"))
    settings: Any = {
        **defaults,
        "font.family": ["DejaVu Sans"],  # bundled with matplotlib: the same metrics everywhere
        "font.size": FONT_PX,
        "svg.fonttype": "none",
        "svg.hashsalt": ident,
        "text.parse_math": False,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.labelsize": FONT_PX,
        "axes.edgecolor": muted,
        "axes.linewidth": 0.8,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelsize": FONT_PX,
        "ytick.labelsize": FONT_PX,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser's font draws the text; that DejaVu lacks a glyph is no news.
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI))


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in pixels from the figure's upper left corner."""
    full_width, full_height = (DPI * float(inches) for inches in figure.get_size_inches())
    return figure.add_axes(
        (
            left / full_width,
            1 - (top + height) / full_height,
            width / full_width,
            height / full_height,
        )
    )


def add_title(axes: Axes, text: str) -> None:
    """Says above the axes, at the left, what their values are."""
    axes.set_title(text, loc="left", fontsize=FONT_PX, color=role_colour("ink"), pad=6)


def to_svg(figure: Figure, ident: str, label: str, titles: Mapping[str, str] | None = None) -> str:
    """Writes a figure as an `<svg>` element.

    Args:
        figure: Drawn within `drawing(ident)`.
        ident: Unique in the page; every identifier in the element begins with it.
        label: What the figure shows, for those who do not see it.
        titles: Tooltips, by the gid of the artist that they belong to.

    Returns:
        One element with no namespaces, no metadata and no style sheet of its own.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    width, height = (DPI * float(inches) for inches in figure.get_size_inches())

    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
        for child in [c for c in element if _local(c.tag) in ("metadata", "style")]:
            element.remove(child)
        element.tail = element.tail.strip() if element.tail else None
        if title := (titles or {}).get(attributes.get("id", "")):
            tooltip = ElementTree.Element("title")
            tooltip.text = title
            element.insert(0, tooltip)
    _rename_identifiers(root, ident)
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "role": "img",
            "aria-label": label,
        }
    )
    return to_css(ElementTree.tostring(root, encoding="unicode"))


def standalone(svg: str) -> str:
    """Makes an `<svg>` element of the page a file of its own: namespace and colours included.

    The colours follow the viewer's scheme, light or dark.
    """
    labels = sorted(set(re.findall(r"var\(--o-(\w+)\)", svg)))
    light, dark = css_colours(labels)
    style = (
        f"svg{{{_properties(light)}background:var(--surface)}}"
        f"@media(prefers-color-scheme:dark){{svg{{{_properties(dark)}}}}}"
    )
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'


def _properties(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rename_identifiers(root: ElementTree.Element, ident: str) -> None:
    """Keeps the identifiers that something refers to, each beginning with `ident`."""
    used: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href" or "url(#" in value:
                used.update(_REFERENCE.findall(value))
                element.attrib[key] = _REFERENCE.sub(rf"#{ident}-\1", value)
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.attrib["id"] = f"{ident}-{name}"
