"""BatchNorm statistics of the finished weights, in one of two ways: a choice by validation images.

With each option alone in the whole network, every option's are estimated from all images, but what
a block sees where others are skipped is distributed otherwise. Along the paths that are taken they
are right for those, and estimated from as few images as take an option in a block, which are not
any images. Which errs less depends on how much is skipped and how evenly the options are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fracskip.cost import BudgetCurve
from fracskip.dynamic import DynamicNetwork
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.judging import Judge
from fracskip.training.objective import spread

PLACES = (1 / 6, 1 / 2, 5 / 6)  # on a curve, where the loss is measured


def choose_norms(
    net: DynamicNetwork,
    images: Sequence[Tensor],
    decisions: Sequence[Tensor] | None,
    data: Labelled,
    most: int = 2000,
) -> str:
    """Estimates statistics in both ways and keeps those with which the loss is less.

    Both are judged along the same paths, those that the gates choose before: with other statistics
    they choose others, which cost more or less.

    Args:
        net: A network with gates, which is changed.
        images: Normalised batches (B, C, H, W) to estimate them from.
        decisions: The paths, (B, L) for each batch; None: those that the gates choose.
        data: Validation images and labels.
        most: How many of them to use.

    Returns:
        'options' or 'paths'.
    """
    was_training = net.training
    net.eval()
    judge = Judge(net, data, most)
    paths = [
        torch.from_numpy(predict(net, data.images[:most], budget=budget).decisions)
        for budget in _budgets(net)
    ]
    for option in net.options:
        if not option.is_skip:
            alone = [net.forced(option, len(batch)) for batch in images]
            net.reestimate(images, decisions=alone)
    by_option, kept = _loss(judge, paths), _statistics(net)
    net.reestimate(images, decisions=decisions)
    better = "paths" if _loss(judge, paths) <= by_option else "options"
    if better == "options":
        net.load_state_dict(kept, strict=False)
    net.train(was_training)
    return better


def _budgets(net: DynamicNetwork) -> list[float | None]:
    """Where on its curve a network is judged; None: where it has no curve."""
    if not net.spec.curve:
        return [None]
    low, high = BudgetCurve(net.spec.curve).range
    return [spread(low, high, place) for place in PLACES]


def _loss(judge: Judge, paths: Sequence[Tensor]) -> float:
    """The mean cross-entropy, over the paths (N, L) of several budgets."""
    return sum(judge.loss(path) for path in paths) / len(paths)


def _statistics(net: DynamicNetwork) -> dict[str, Tensor]:
    names = ("_mean", "_var")
    return {name: x.clone() for name, x in net.state_dict().items() if name.endswith(names)}
