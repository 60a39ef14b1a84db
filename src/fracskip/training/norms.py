"""BatchNorm statistics of the finished weights, in one of two ways: a choice by validation images.

With each option alone in the whole network, every option's are estimated from all images, but what
a block sees where others are skipped is distributed otherwise. Along the paths that are taken they
are right for those, and estimated from as few images as take an option in a block, which are not
any images. Which errs less depends on how much is skipped and how evenly the options are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fracskip.cost import BudgetCurve
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.objective import spread

PLACES = (1 / 6, 1 / 2, 5 / 6)  # on a curve, where the loss is measured
BATCH = 250


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
    judged = [predict(net, data.images[:most], budget=budget).decisions for budget in _budgets(net)]
    for option in net.options:
        if not option.is_skip:
            alone = [net.forced(option, len(batch)) for batch in images]
            net.reestimate(images, decisions=alone)
    by_option, kept = _loss(net, data, judged), _statistics(net)
    net.reestimate(images, decisions=decisions)
    if _loss(net, data, judged) <= by_option:
        return "paths"
    net.load_state_dict(kept, strict=False)
    return "options"


def _budgets(net: DynamicNetwork) -> list[float | None]:
    """Where on its curve a network is judged; None: where it has no curve."""
    if not net.spec.curve:
        return [None]
    low, high = BudgetCurve(net.spec.curve).range
    return [spread(low, high, place) for place in PLACES]


@torch.no_grad()
def _loss(net: DynamicNetwork, data: Labelled, judged: Sequence[NDArray[np.int64]]) -> float:
    """The mean cross-entropy along some paths, decisions (N, L) of the first N images each."""
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    total = 0.0
    for decisions in judged:
        for start in range(0, len(decisions), BATCH):
            taken = torch.from_numpy(decisions[start : start + BATCH])
            here = slice(start, start + len(taken))
            pixels = preprocess(torch.from_numpy(data.images[here]).to(device), net.spec.image)
            labels = torch.from_numpy(data.labels[here]).to(device)
            said = net(pixels, decisions=taken.to(device)).logits.float()
            total += float(F.cross_entropy(said, labels, reduction="sum"))
    net.train(was_training)
    return total / sum(len(decisions) for decisions in judged)


def _statistics(net: DynamicNetwork) -> dict[str, Tensor]:
    names = ("_mean", "_var")
    return {name: x.clone() for name, x in net.state_dict().items() if name.endswith(names)}
