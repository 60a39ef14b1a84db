"""Which looks meet which budget, where images may be looked at twice: a choice by validation.

What a prediction says of its own certainty tells hard images from easy ones better than anything
that is known before it is there. So a cascade spends less than its budget on a first look, and the
rest on a second look at the images that the first leaves least certain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fracskip.cost import BudgetCurve, account
from fracskip.cost.cascade import CascadePoint
from fracskip.dynamic import DynamicNetwork
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled

STEP = 1.25  # from the budget of a look to that of the next dearer one
FURTHEST = 5  # so many steps the first look's budget may lie under the cascade's, the second's over
JUST_UNDER = 1 - 1e-4  # a budget that still gets one look, where those over it get two


@dataclass(frozen=True)
class Look:
    """What one look at N validation images gives.

    Attributes:
        budget: Asked for.
        cost: Computation share of each image, (N,).
        confidence: Probability of each image's first choice, (N,).
        right: Whether that is its class, (N,).
    """

    budget: float
    cost: NDArray[np.float64]
    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]


def measure_cascade(net: DynamicNetwork, data: Labelled) -> float:
    """Lets the network look twice, if validation images gain by it.

    The first look's budget is the same share of the asked one at every budget, and the second's the
    same multiple, but for the ends of the curve; and budgets under one of them, which leave a first
    look too little, get one look. So three numbers are chosen by accuracy, too few to fit the
    images that they are chosen on. Thresholds need no labels.

    A gain that is not above its own standard error is none.

    Args:
        net: A network with a curve that reaches its target; its `spec.cascade` is set.
        data: Validation images, which the weights must not have learned: confidence in known
            images says nothing of others.

    Returns:
        Accuracy gained on these images, a mean over budgets; 0 where the network keeps one look.
    """
    net.spec = net.spec.model_copy(update={"cascade": ()})
    low, high = BudgetCurve(net.spec.curve).range
    target = net.spec.target
    if target is None or not low <= target <= high:
        return 0.0  # who names no budget asks for the target
    steps = max(1, round(math.log(high / low) / math.log(STEP)))
    budgets = np.geomspace(low, high, steps + 1).clip(low, high).tolist()
    looks = [look_at(net, data, budget) for budget in budgets]
    found = [
        where_it_pays(*combined(looks, under, over))
        for under, over in itertools.product(range(1, FURTHEST + 1), repeat=2)
    ]
    gained, points = max(found, key=lambda each: float(each[0].mean()))
    if gained.mean() <= gained.std() / math.sqrt(len(gained)):
        return 0.0
    net.spec = net.spec.model_copy(update={"cascade": points})
    return float(gained.mean())


def look_at(net: DynamicNetwork, data: Labelled, budget: float) -> Look:
    """One look at all images."""
    found = predict(net, data.images, budget=budget)
    cost = account(found.decisions, net.options, net.profile)
    return Look(budget, cost.image_cp, found.probabilities.max(1), found.predicted == data.labels)


def combined(
    looks: Sequence[Look], under: int, over: int
) -> tuple[NDArray[np.float64], tuple[CascadePoint, ...]]:
    """Cascades for all the looks' budgets.

    Args:
        looks: Ascending in budget.
        under: So many looks before a budget's own comes its first look.
        over: So many after it the second.

    Returns:
        1 where an image is right that is wrong in one look, -1 where it is the other way round,
        else 0, (budgets, N); and the cascade's points, one a budget.
    """
    gains, points = [], []
    for index, own in enumerate(looks):
        first = looks[max(index - under, 0)]
        second = looks[min(index + over, len(looks) - 1)]
        confidence = threshold(first, second, own.budget)
        right = np.where(first.confidence < confidence, second.right, first.right)
        gains.append(right.astype(np.float64) - own.right)
        points.append((own.budget, first.budget, second.budget, confidence))
    return np.stack(gains), tuple(points)


def where_it_pays(
    gains: NDArray[np.float64], points: Sequence[CascadePoint]
) -> tuple[NDArray[np.float64], tuple[CascadePoint, ...]]:
    """Gives the smallest budgets one look, up to where the sum of all gains is greatest.

    Args:
        gains: Of each budget's cascade, (budgets, N).
        points: Their cascades.

    Returns:
        What each image gains, a mean over all budgets (N,), and the cascade's points.
    """
    from_there_up = gains.mean(1)[::-1].cumsum()[::-1]
    start = int(from_there_up.argmax())
    gained = gains[start:].sum(0) / len(gains)
    if not start:
        return gained, tuple(points)
    alone = [(budget,) * 3 for budget in (points[0][0], points[start][0] * JUST_UNDER)]
    return gained, (*((*budgets, 0.0) for budgets in alone), *points[start:])


def threshold(first: Look, second: Look, budget: float) -> float:
    """The confidence under which a second look spends what the first leaves of a budget.

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
