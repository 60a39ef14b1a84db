"""The page's colours, light and dark, and how figures borrow them.

An option has one colour wherever it appears: skip is a neutral grey, widths run from light
yellow over green and blue to deep violet with falling OKLCH lightness (so that they keep their
order without colour vision and in print), full is a strong orange-red.

matplotlib knows no CSS: it draws with sentinel colours that nothing else uses, and `to_css`
replaces each by a CSS custom property, so that one figure follows the reader's colour scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fracskip.options import Option

_ROLES = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#59616b", "#a2abb6"),
    "faint": ("#8a929c", "#7b8490"),
    "grid": ("#e3e6ea", "#2d333b"),
    "band": ("#f4f5f7", "#1d2127"),
    "surface": ("#ffffff", "#14171b"),
    "link": ("#1f5fa8", "#7db4f0"),
    "wrong": ("#b3261e", "#ff8a75"),
}

_SKIP = ("#c3c8cf", "#4d545e")
_FULL = ("#ce3401", "#f16935")
_WIDTHS = {
    2: ("#eee354", "#f7ed6c"),
    3: ("#b2d453", "#c1e26c"),
    4: ("#70c35d", "#87d576"),
    5: ("#18ba75", "#4dcf8d"),
    6: ("#0ba88c", "#01c4a3"),
    7: ("#04979d", "#09b4bb"),
    8: ("#0585a9", "#04a4ce"),
    9: ("#0179a8", "#0599d1"),
    10: ("#036ca8", "#038cd8"),
    11: ("#025ead", "#2f7fd4"),
    12: ("#1e4eac", "#4372ce"),
    13: ("#323ea2", "#5265c5"),
    14: ("#3c2f95", "#5d58ba"),
    15: ("#422088", "#644cae"),
    16: ("#450f79", "#6941a1"),
}

_ROLE_SENTINEL, _OPTION_SENTINEL = "#f0e1", "#f0e2"
_SENTINEL = re.compile("#f0e([12])([0-9a-f]{2})")


def role_colour(role: str) -> str:
    """The sentinel that stands for a role, such as 'ink', while matplotlib draws."""
    return f"{_ROLE_SENTINEL}{list(_ROLES).index(role):02x}"


def option_colour(label: str) -> str:
    """The sentinel that stands for an option while matplotlib draws."""
    return f"{_OPTION_SENTINEL}{Option.parse(label).bits:02x}"


def to_css(svg: str) -> str:
    """Replaces every sentinel in a drawing by its CSS custom property.

    >>> to_css('fill: ' + option_colour('8')), to_css('stroke: ' + role_colour('ink'))
    ('fill: var(--o-8)', 'stroke: var(--ink)')
    """

    def property_of(match: re.Match[str]) -> str:
        number = int(match[2], 16)
        name = list(_ROLES)[number] if match[1] == "1" else f"o-{Option(number).label}"
        return f"var(--{name})"

    return _SENTINEL.sub(property_of, svg)


def css_colours(labels: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The custom properties of a page that speaks of these options: light values, dark values."""
    pairs = dict(_ROLES)
    for option in sorted({Option.parse(label) for label in labels}):
        pair = _SKIP if option.is_skip else _FULL if option.is_full else _WIDTHS[option.bits]
        pairs[f"o-{option.label}"] = pair
    light, dark = ({name: pair[mode] for name, pair in pairs.items()} for mode in (0, 1))
    return light, dark
