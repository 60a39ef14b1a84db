"""BatchNorm statistics of the finished weights, in one of two ways: a choice by validation images.

With each option alone in the whole network, every option's are estimated from all images, but what
a block sees where others are skipped is distributed otherwise. In the allocations taken they are
right for those, and estimated from as few images as take an option in a block, which are not
any images. Which errs less depends on how much is skipped and how evenly the options are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fracskip.dynamic import DynamicNetwork
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.objective import spread
from fracskip.training.validation import ValidationLoss

SHARES = (1 / 6, 1 / 2, 5 / 6)  # of the way along a curve, where the loss is measured


def norm_statistics(
    net: DynamicNetwork,
    images: Sequence[Tensor],
    decisions: Sequence[Tensor] | None,
    data: Labelled,
    most: int = 2000,
) -> tuple[str, dict[str, Tensor]]:
    """Estimates statistics in both ways: those with which the loss is less; nothing is changed.

    Both are held against the same decisions, those that the gates make before: with other
    statistics they make others, which cost more or less.

    Args:
        net: A network with gates.
        images: Normalised batches (B, C, H, W) to estimate them from.
        decisions: What is executed, (B, L) for each batch; None: what the gates choose.
        data: Validation images and labels.
        most: How many of them to use.

    Returns:
        'options' or 'decisions', and what the network's state takes, by name.
    """
    was_training = net.training
    net.eval()
    before = _statistics(net)
    loss = ValidationLoss(net, data, most)
    executed = [
        torch.from_numpy(predict(net, data.images[:most], budget=budget).decisions)
        for budget in _budgets(net)
    ]
    for option in net.options:
        if not option.is_skip:
            alone = [net.forced(option, len(batch)) for batch in images]
            net.reestimate(images, decisions=alone)
    by_option, found = _mean(loss, executed), _statistics(net)
    net.reestimate(images, decisions=decisions)
    better = "options"
    if _mean(loss, executed) <= by_option:
        better, found = "decisions", _statistics(net)
    net.load_state_dict(before, strict=False)
    net.train(was_training)
    return better, found


def _budgets(net: DynamicNetwork) -> list[float | None]:
    """Where on its curve the loss is measured; None: where there is no curve."""
    if net.operating_points.range is None:
        return [None]
    low, high = net.operating_points.range
    return [spread(low, high, share) for share in SHARES]


def _mean(loss: ValidationLoss, executed: Sequence[Tensor]) -> float:
    """The mean cross-entropy, over the decisions (N, L) at several budgets."""
    return sum(loss(decisions) for decisions in executed) / len(executed)


def _statistics(net: DynamicNetwork) -> dict[str, Tensor]:
    names = ("_mean", "_var")
    return {name: x.clone() for name, x in net.state_dict().items() if name.endswith(names)}
