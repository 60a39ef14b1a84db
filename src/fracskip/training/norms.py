"""BatchNorm statistics of the finished weights, in one of two ways: a choice by validation images.

With each option alone in the whole network, every option's are estimated from all images, but what
a block sees where others are skipped is distributed otherwise. Along the paths that are taken they
are right for those, and estimated from as few images as take an option in a block, which are not
any images. Which errs less depends on how much is skipped and how evenly the options are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fracskip.cost import BudgetCurve
from fracskip.dynamic import DynamicNetwork
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.objective import spread

PLACES = (1 / 6, 1 / 2, 5 / 6)  # on a curve, where the loss is measured
LEAST = 1e-9  # a probability that is 0 in float32 has a logarithm all the same


def choose_norms(
    net: DynamicNetwork,
    images: Sequence[Tensor],
    decisions: Sequence[Tensor] | None,
    data: Labelled,
    most: int = 2000,
) -> str:
    """Estimates statistics in both ways and keeps those with which the loss is less.

    Args:
        net: A network with gates, which is changed.
        images: Normalised batches (B, C, H, W) to estimate them from.
        decisions: The paths, (B, L) for each batch; None: those that the gates choose.
        data: Validation images and labels.
        most: How many of them to use.

    Returns:
        'options' or 'paths'.
    """
    for option in net.options:
        if not option.is_skip:
            alone = [net.forced(option, len(batch)) for batch in images]
            net.reestimate(images, decisions=alone)
    by_option, kept = _loss(net, data, most), _statistics(net)
    net.reestimate(images, decisions=decisions)
    if _loss(net, data, most) <= by_option:
        return "paths"
    net.load_state_dict(kept, strict=False)
    return "options"


def _loss(net: DynamicNetwork, data: Labelled, most: int) -> float:
    """The mean cross-entropy, over a few budgets if the network takes any."""
    budgets: list[float | None] = [None]
    if net.spec.curve:
        low, high = BudgetCurve(net.spec.curve).range
        budgets = [spread(low, high, place) for place in PLACES]
    labels = data.labels[:most]
    losses = []
    for budget in budgets:
        said = predict(net, data.images[:most], budget=budget).probabilities
        right = said[np.arange(len(labels)), labels]
        losses.append(-float(np.log(np.maximum(right, LEAST)).mean()))
    return sum(losses) / len(losses)


def _statistics(net: DynamicNetwork) -> dict[str, Tensor]:
    names = ("_mean", "_var")
    return {name: x.clone() for name, x in net.state_dict().items() if name.endswith(names)}
