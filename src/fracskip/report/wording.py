"""Numbers and options as words: the one home of how the report writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from fracskip.options import Option


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage.

    One that would be rounded to none or to all says so.

    >>> percent(0.925), percent(0.9266, 2), percent(0.0), percent(1.0)
    ('92.5%', '92.66%', '0%', '100%')
    >>> percent(0.0002), percent(0.9999)
    ('<0.1%', '>99.9%')
    """
    step = 10**-digits
    if 0 < share < 1:
        text = f"{100 * share:.{digits}f}%"
        none, all_ = f"{0:.{digits}f}%", f"{100:.{digits}f}%"
        return {none: f"<{step:.{digits}f}%", all_: f">{100 - step:.{digits}f}%"}.get(text, text)
    return f"{100 * share:.{digits if share > 1 else 0}f}%"


def cost(share: float) -> str:
    """A cost, which may span decades, to three significant digits.

    >>> cost(0.05), cost(0.0625), cost(0.25), cost(1.0), cost(0.0), cost(0.00391)
    ('5.00%', '6.25%', '25.0%', '100%', '0%', '0.391%')
    """
    value = 100 * share
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return f"{value:.{min(max(digits, 0), 6)}f}%"


def accuracy(share: float, images: int) -> str:
    """An accuracy as a percentage, no finer than its images can tell.

    >>> accuracy(0.9266, 10_000), accuracy(0.85, 100)
    ('92.66%', '85.0%')
    """
    return percent(share, _digits(images))


def _digits(images: int) -> int:
    return 2 if images >= 10_000 else 1


def accuracy_interval(share: float, interval: tuple[float, float], images: int) -> str:
    """An accuracy and half the width of its interval, in points.

    >>> accuracy_interval(0.931, (0.9259, 0.9358), 10_000)
    '93.10% ± 0.50'
    """
    digits = _digits(images)
    return f"{percent(share, digits)} ± {50 * (interval[1] - interval[0]):.{digits}f}"


def microseconds(value: float) -> str:
    """A latency in words.

    >>> microseconds(153.2), microseconds(1000.0), microseconds(2430.0), microseconds(3.14)
    ('153 µs', '1 ms', '2.43 ms', '3.1 µs')
    """
    if value >= 999.5:
        return f"{value / 1000:.3g} ms"
    return f"{value:.0f} µs" if value >= 9.95 else f"{value:.2g} µs"


def counted_us(value: float) -> str:
    """Microseconds without their unit, to three digits at least.

    >>> counted_us(12345.6), counted_us(98.26), counted_us(1.5)
    ('12,346', '98.3', '1.50')
    """
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def chain_words(members: Sequence[int]) -> str:
    """A chain of members by their numbers.

    >>> chain_words((0, 2)), chain_words((1,))
    ('0 > 2', '1')
    """
    return " > ".join(map(str, members))


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(12.34), duration(300), duration(5000)
    ('12.3 s', '5 min 0 s', '1 h 23 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def option_words(label: str) -> str:
    """An option in words.

    >>> option_words("skip"), option_words("8"), option_words("full")
    ('skip', '8 bits', 'full')
    """
    return f"{label} bits" if Option.parse(label).is_quantised else label


def network_words(options: Sequence[str]) -> str:
    """What to call a network with these options.

    >>> network_words(("skip", "8")), network_words(("8",))
    ('Dynamic', 'Static 8 bits')
    """
    return "Dynamic" if len(options) > 1 else f"Static {option_words(options[0])}"


def share_words(shares: Mapping[str, float]) -> str:
    """Shares of options in one line, those at zero left out.

    >>> share_words({"skip": 0.2, "8": 0.8, "full": 0.0})
    'skip 20.0%, 8 bits 80.0%'
    """
    return ", ".join(f"{option_words(k)} {percent(v)}" for k, v in shares.items() if v > 0)


def allocation_words(allocation: Sequence[str]) -> str:
    """An allocation in words, equal neighbours as one.

    >>> allocation_words(("8", "8", "skip", "8"))
    '8 bits (2), skip, 8 bits'
    """
    runs = ((option_words(label), len(list(group))) for label, group in groupby(allocation))
    return ", ".join(f"{words} ({count})" if count > 1 else words for words, count in runs)


def counted(escalation_rate: float) -> str:
    """What shares in a block are shares of, where this share of images was escalated.

    >>> counted(0.0), counted(0.25)
    ('images', 'executions')
    """
    return "executions" if escalation_rate else "images"


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters.

    >>> shortened("layer1.1", 8), shortened("features.stage1.1", 8)
    ('layer1.1', 'feature…')
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def listed(items: Sequence[str]) -> str:
    """Items joined as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
