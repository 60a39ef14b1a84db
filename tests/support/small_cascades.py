"""Small cascades of random networks, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fracskip.operating.cascade import CascadePoint, CascadePoints, Member
from fracskip.runtime.bundle import Bundle, parse_bundle
from fracskip.runtime.cascade_bundle import CascadeBundle, cascade_of
from support.random_bundle import random_bundle

IMAGES = 1000


def networks(
    *sizes: tuple[int, int], options: Sequence[str | int] = (8,), **shape: Any
) -> list[Bundle]:
    """One network a size, each with weights of its own; static unless options say otherwise."""
    return [
        parse_bundle(random_bundle(seed, image=size, options=options, first=8, ends=8, **shape))
        for seed, size in enumerate(sizes)
    ]


def member(network: int, bitops: float, **fields: Any) -> Member:
    """A member at the only budget of a static network."""
    own = {
        "budget": None,
        "temperature": 1.0,
        "correct": 900,
        "shares": (),
        "quantiles": (0.1, 0.9),
    }
    return Member(network=network, bitops=bitops, **{**own, **fields})


def points(
    members: Sequence[Member], thresholds: Sequence[float] = (0.9, 0.5), averaged: bool = False
) -> CascadePoints:
    """Each member alone, and chains of the first and each other at some thresholds.

    What they say of accuracy is made up: the more is escalated the better.
    """
    count = len(members)
    found = [
        CascadePoint(
            chain=(index,), thresholds=(), rates=(1.0,), quantiles=(),
            correct=members[index].correct, against=((20, 20),) * count,
        )
        for index in range(count)
    ]  # fmt: skip
    for last in range(1, count):
        for place, threshold in enumerate(thresholds):
            found.append(
                CascadePoint(
                    chain=(0, last),
                    thresholds=(threshold,),
                    rates=(1.0, 0.5 / (1 + place)),
                    quantiles=(),
                    correct=970 + 5 * last - 10 * place,
                    against=((40, 5),) * count,
                )
            )
    return CascadePoints(
        members=tuple(members),
        score="probability",
        averaged=averaged,
        images=IMAGES,
        points=tuple(found),
    )


def small_cascade(
    sizes: Sequence[tuple[int, int]] = ((12, 12), (16, 16)),
    thresholds: Sequence[float] = (0.9, 0.5),
    averaged: bool = False,
    **shape: Any,
) -> CascadeBundle:
    """Static networks of two stages, the smallest images first."""
    given = networks(*sizes, **shape)
    bitops = np.geomspace(1e6, 4e6, len(given))
    members = [member(index, float(each)) for index, each in enumerate(bitops)]
    return cascade_of(given, points(members, thresholds, averaged))
