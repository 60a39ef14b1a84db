"""Which members of a cascade meet which budget: a choice by validation images.

What a prediction says of its own certainty tells hard images from easy ones better than anything
that is known before it is there. So a cascade spends less than its budget on a first member, and
the rest on a second one for the images that the first leaves least certain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork
from fracskip.operating import Cascade, OperatingPoints
from fracskip.training.batches import Labelled
from fracskip.training.validation import predicted

STEP = 1.25  # from the budget of a member to that of the next dearer one
FURTHEST = 5  # so many steps the first budget may lie under the cascade's, the second's over
JUST_UNDER = 1 - 1e-4  # a budget that still gets one member, where those over it get two

Row = tuple[float, float, float, float]  # of a `Cascade`


@dataclass(frozen=True)
class Member:
    """A network at a budget on N validation images: what may stand in a cascade.

    Attributes:
        budget: Asked for.
        cost: Of each image, (N,).
        confidence: Probability of each image's first choice, (N,).
        right: Whether that is its class, (N,).
    """

    budget: float
    cost: NDArray[np.float64]
    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]


def best_cascade(net: DynamicNetwork, data: Labelled) -> tuple[Cascade, float]:
    """The cascade by which validation images gain most; nothing is changed.

    The first member's budget is the same share of the asked one at every budget, and the second's
    the same multiple, but for the ends of the curve; and budgets under one of them, which leave a
    first member too little, get one member. So three numbers are chosen by accuracy, too few to fit
    the images that they are chosen on. Thresholds need no labels.

    A gain that is not above its own standard error is none.

    Args:
        net: A network with a multiplier curve that reaches its target.
        data: Validation images, which the weights must not have learned: confidence in known
            images says nothing of others.

    Returns:
        The cascade, and the accuracy gained on these images, a mean over budgets; () and 0 where
        one member does as well.
    """
    points = net.operating_points.changed(cascade=())
    assert points.range is not None
    low, high = points.range
    if points.target is None or not low <= points.target <= high:
        return (), 0.0  # who names no budget asks for the target
    steps = max(1, round(math.log(high / low) / math.log(STEP)))
    budgets = np.geomspace(low, high, steps + 1).clip(low, high).tolist()
    members = [member_at(net, points, data, budget) for budget in budgets]
    found = [
        where_it_pays(*combined(members, under, over))
        for under, over in itertools.product(range(1, FURTHEST + 1), repeat=2)
    ]
    gained, rows = max(found, key=lambda each: float(each[0].mean()))
    if gained.mean() <= gained.std() / math.sqrt(len(gained)):
        return (), 0.0
    return rows, float(gained.mean())


def member_at(
    net: DynamicNetwork, points: OperatingPoints, data: Labelled, budget: float
) -> Member:
    """All images answered at a budget, at operating points without a cascade."""
    found = predicted(net, points, data.images, budget)
    cost = account(found.executions, net.options, net.profile)
    right = found.predicted == data.labels
    return Member(budget, cost.image_cp, found.probabilities.max(1), right)


def combined(
    members: Sequence[Member], under: int, over: int
) -> tuple[NDArray[np.float64], tuple[Row, ...]]:
    """Cascades for all the members' budgets.

    Args:
        members: Ascending in budget.
        under: So many members before a budget's own comes its first one.
        over: So many after it the second.

    Returns:
        1 where an image is right that is wrong by one member, -1 where it is the other way round,
        else 0, (budgets, N); and the cascade's rows, one a budget.
    """
    gains, rows = [], []
    for index, own in enumerate(members):
        first = members[max(index - under, 0)]
        second = members[min(index + over, len(members) - 1)]
        least = threshold(first, second, own.budget)
        right = np.where(first.confidence < least, second.right, first.right)
        gains.append(right.astype(np.float64) - own.right)
        rows.append((own.budget, first.budget, second.budget, least))
    return np.stack(gains), tuple(rows)


def where_it_pays(
    gains: NDArray[np.float64], rows: Sequence[Row]
) -> tuple[NDArray[np.float64], tuple[Row, ...]]:
    """Gives the smallest budgets one member, up to where the sum of all gains is greatest.

    Args:
        gains: Of each budget's cascade, (budgets, N).
        rows: Their cascades.

    Returns:
        What each image gains, a mean over all budgets (N,), and the cascade's rows.
    """
    from_there_up = gains.mean(1)[::-1].cumsum()[::-1]
    start = int(from_there_up.argmax())
    gained = gains[start:].sum(0) / len(gains)
    if not start:
        return gained, tuple(rows)
    alone = [(budget,) * 3 for budget in (rows[0][0], rows[start][0] * JUST_UNDER)]
    return gained, (*((*budgets, 0.0) for budgets in alone), *rows[start:])


def threshold(first: Member, second: Member, budget: float) -> float:
    """The confidence under which escalation spends what the first member leaves of a budget.

    Halfway between the last image that the budget pays for and the next; where it pays for none,
    just none is under it.
    """
    order = np.argsort(first.confidence, kind="stable")
    spent = first.cost.mean() + np.cumsum(second.cost[order]) / len(order)
    count = int(np.searchsorted(spent, budget, side="right"))
    if count == 0:
        return float(first.confidence.min())
    if count == len(order):
        return 1.0
    return float(first.confidence[order[count - 1 : count + 1]].mean())
