"""How much of what gates say of an image is to be believed: a choice by validation images.

Gates learn on images that the weights have learned too, and what they then tell of unseen images is
in part noise. An option that they underrate by mistake is chosen for it, so noise does not average
out: pulled towards what they say of most images, the same gates decide better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.training.objective import lean_to, leaned_path

BATCH = 250
APPROACHES = 2  # to the path that the gates choose for the mean image


@torch.no_grad()
def choose_trust(
    net: DynamicNetwork,
    data: ImageSet,
    budgets: Sequence[float],
    trusts: Sequence[float],
    images: int = 2000,
) -> float:
    """Keeps that share of the gates' differences between images at which the loss is least.

    Args:
        net: The network; its gates are changed.
        data: Validation images and labels.
        budgets: At which the cross-entropy is measured, ascending.
        trusts: Shares to choose from, in [0, 1].
        images: How many to use.

    Returns:
        The share.
    """
    assert net.gate is not None
    device = next(net.parameters()).device
    pixels = preprocess(torch.from_numpy(data.images[:images]).to(device), net.spec.image)
    batches, labels = _batches(pixels), torch.from_numpy(data.labels[:images]).to(device)
    costs, weights = torch.tensor(net.options.costs, device=device), net.lean_weights
    was_training = net.training
    net.eval()
    said = [_said(net, batches, budget) for budget in budgets]
    centre = said[len(said) // 2].mean(0)
    losses = dict.fromkeys(trusts, 0.0)
    for trust in trusts:
        for budget, each in zip(budgets, said, strict=True):
            logits = net.gate.logits_of(centre + trust * (each - centre))
            lean = lean_to(logits, costs, weights, budget)
            decisions = _batches((logits + lean * weights).argmax(-1))
            answers = [
                net(batch, decisions=taken).logits
                for batch, taken in zip(batches, decisions, strict=True)
            ]
            losses[trust] += float(F.cross_entropy(torch.cat(answers).float(), labels))
    best = min(losses, key=lambda trust: losses[trust])
    net.gate.trust(best, centre)
    net.train(was_training)
    return best


def _batches(values: Tensor) -> list[Tensor]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]


def _said(net: DynamicNetwork, batches: Sequence[Tensor], budget: float) -> Tensor:
    """What the gates say, (B, L, K), on the path that they choose for the mean image."""
    assert net.gate is not None
    costs, weights = torch.tensor(net.options.costs), net.lean_weights.cpu()
    path = [len(net.options) - 1] * len(net.blocks)
    told = budget if net.spec.gate.budget_input else None
    for _ in range(APPROACHES):
        mean = net.gate_logits_on(net.walk(batches[0], path)[0], told).mean(0).cpu()
        path = leaned_path(mean, costs, weights, budget)
    logits = [net.gate_logits_on(net.walk(batch, path)[0], told) for batch in batches]
    return net.gate.said_by(torch.cat(logits))
