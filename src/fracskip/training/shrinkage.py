"""How far head outputs of gates are shrunk towards their means: a choice by validation images.

Gates learn on images that the weights have learned too, and what they then give for unseen images
is in part noise. An option that is underrated by mistake is chosen for it, so noise does not
average out: shrunk towards the mean over images, the same gates decide better.

What is given for a block was measured in that block alone. Sensitivities do not quite add up: where
many blocks execute less, an allocation that tells blocks apart by single sensitivities can do worse
than one width in all of them. So head outputs may be shrunk towards the mean over blocks, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fracskip.dynamic import DynamicNetwork
from fracskip.training.batches import Labelled
from fracskip.training.objective import allocation_at, multiplier_at
from fracskip.training.validation import ValidationLoss

FAR_OFF = 0.05  # a share of a budget
APPROACHES = 2  # to the allocation that the gates choose for the mean image
MEASURED = 3  # budgets at which the loss is measured, or one or two more


@dataclass(frozen=True)
class Shrinkage:
    """How far head outputs are shrunk, as shares in [0, 1]: 0 leaves them, 1 leaves the mean.

    Attributes:
        images: Towards the mean over images.
        blocks: Towards the mean over blocks.
    """

    images: float = 0.0
    blocks: float = 0.0

    def added(self, centre: Tensor) -> Tensor:
        """What is added, the same for all images, to 1 - `images` times the head outputs.

        Args:
            centre: The mean head outputs over images, (L, K).
        """
        return self.images * centre + self.blocks * (centre.mean(0) - centre)


@dataclass(frozen=True)
class ChosenShrinkage:
    """What was chosen, and how a gate takes it: `Gate.shrink(shrinkage.images, added)`.

    Attributes:
        shrinkage: The shares.
        added: See `Shrinkage.added`.
    """

    shrinkage: Shrinkage
    added: Tensor


@torch.no_grad()
def choose_shrinkage(
    net: DynamicNetwork,
    data: Labelled,
    budgets: Sequence[float],
    image_shares: Sequence[float],
    block_shares: Sequence[float] = (),
    images: int = 2000,
) -> ChosenShrinkage:
    """The shrinkage with which the loss is least; nothing is changed.

    Shares with which more of the budgets are met come first: without differences all decisions
    change at once, and what lies between is out of reach.

    The share for blocks is chosen first, with the largest share for images that there is to choose;
    then the share for images.

    Args:
        net: The network.
        data: Validation images and labels.
        budgets: To be met, ascending; at a few of them the cross-entropy is measured.
        image_shares: To choose from, towards the mean over images; () shrinks nothing.
        block_shares: Likewise, over blocks.
        images: How many to use.
    """
    was_training = net.training
    net.eval()
    shrunk = _ShrunkOutputs(net, data, budgets, images)
    best = Shrinkage()
    if block_shares:
        most = max(image_shares, default=0.0)
        found = min((Shrinkage(most, share) for share in block_shares), key=shrunk.loss)
        best = Shrinkage(0.0, found.blocks)
    if image_shares:
        best = min((Shrinkage(share, best.blocks) for share in image_shares), key=shrunk.loss)
    net.train(was_training)
    return ChosenShrinkage(best, best.added(shrunk.centre))


class _ShrunkOutputs:
    """Head outputs for validation images, and what becomes of decisions when they are shrunk.

    Attributes:
        centre: Their mean over images, (L, K).
    """

    def __init__(
        self, net: DynamicNetwork, data: Labelled, budgets: Sequence[float], images: int
    ) -> None:
        device = next(net.parameters()).device
        self._net, self._budgets = net, budgets
        self._every = max(1, len(budgets) // MEASURED)
        self._loss = ValidationLoss(net, data, images)
        self._costs = torch.tensor(net.options.costs, device=device)
        self._outputs = [_head_outputs(net, self._loss.batches, budget) for budget in budgets]
        self.centre = self._outputs[len(budgets) // 2].mean(0)

    def loss(self, shrinkage: Shrinkage) -> tuple[int, float]:
        """How many budgets no multiplier meets, as decisions jump past; the cross-entropy's sum.

        Whether a budget is met follows from head outputs; the network runs for the loss alone.
        """
        net, weights = self._net, self._net.cost_weights
        missed, total = 0, 0.0
        assert net.gate is not None
        added = shrinkage.added(self.centre)
        for index, (budget, outputs) in enumerate(zip(self._budgets, self._outputs, strict=True)):
            scores = net.gate.scores_of((1 - shrinkage.images) * outputs + added)
            multiplier = multiplier_at(scores + net.mask, self._costs, weights, budget)
            chosen = (scores + multiplier * weights + net.mask).argmin(-1)
            off = float(self._costs[chosen].mean()) - budget
            missed += abs(off) > FAR_OFF * budget
            if index % self._every == 0:
                total += self._loss(chosen)
        return missed, total


def _head_outputs(net: DynamicNetwork, batches: Sequence[Tensor], budget: float) -> Tensor:
    """Head outputs, (B, L, K), in the allocation that the gates choose for the mean image."""
    assert net.gate is not None
    costs, weights = torch.tensor(net.options.costs), net.cost_weights.cpu()
    allocation = [len(net.options) - 1] * len(net.blocks)
    given = budget if net.spec.gate.budget_input else None
    for _ in range(APPROACHES):
        scores = (
            net.gate_scores_on(net.execute_allocation(batches[0], allocation)[0], given) + net.mask
        )
        allocation = allocation_at(scores.mean(0).cpu(), costs, weights, budget)
    scores = torch.cat(
        [
            net.gate_scores_on(net.execute_allocation(batch, allocation)[0], given)
            for batch in batches
        ]
    )
    return net.gate.outputs_of(scores)
