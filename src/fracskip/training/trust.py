"""How much of what gates say is to be believed: a choice by validation images.

Gates learn on images that the weights have learned too, and what they then tell of unseen images is
in part noise. An option that they underrate by mistake is chosen for it, so noise does not average
out: pulled towards what they say of most images, the same gates decide better.

What they say of a block was measured in that block alone. Harm does not quite add up: where many
blocks execute less, a path that tells blocks apart by single harms can do worse than one width in
all of them. So what sets blocks apart may be pulled towards what is said of blocks on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fracskip.dynamic import DynamicNetwork
from fracskip.training.batches import Labelled
from fracskip.training.judging import Judge
from fracskip.training.objective import lean_to, leaned_path

FAR_OFF = 0.05  # a share of a budget
APPROACHES = 2  # to the path that the gates choose for the mean image
JUDGED = 3  # budgets at which the loss is measured, or one or two more


@dataclass(frozen=True)
class Trust:
    """Shares of what gates say that are kept, in [0, 1].

    Attributes:
        images: Of what sets an image apart from most.
        blocks: Of what sets a block apart from the mean of all.
    """

    images: float = 1.0
    blocks: float = 1.0

    def rest(self, centre: Tensor) -> Tensor:
        """What is said for all images alike beside `images` times what was said.

        Args:
            centre: What is said of most images, (L, K).
        """
        levelled = (1 - self.blocks) * (centre.mean(0) - centre)
        return (1 - self.images) * centre + levelled


@torch.no_grad()
def choose_trust(
    net: DynamicNetwork,
    data: Labelled,
    budgets: Sequence[float],
    trusts: Sequence[float],
    block_trusts: Sequence[float] = (),
    images: int = 2000,
) -> Trust:
    """Keeps those shares of the gates' differences at which the loss is least.

    Shares with which more of the budgets are met come first: without differences all decisions
    change at once, and what lies between is out of reach.

    The share for blocks is chosen first, with as little trust in what sets images apart as there is
    to choose; then the share for images.

    Args:
        net: The network; its gates are changed.
        data: Validation images and labels.
        budgets: To be met, ascending; at a few of them the cross-entropy is measured.
        trusts: Shares to choose from for differences between images; () keeps all.
        block_trusts: Likewise between blocks.
        images: How many to use.
    """
    assert net.gate is not None
    was_training = net.training
    net.eval()
    trial = _Trial(net, data, budgets, images)
    best = Trust()
    if block_trusts:
        least = min(trusts, default=1.0)
        found = min((Trust(least, share) for share in block_trusts), key=trial.loss)
        best = Trust(1.0, found.blocks)
    if trusts:
        best = min((Trust(share, best.blocks) for share in trusts), key=trial.loss)
    net.gate.trust(best.images, best.rest(trial.centre))
    net.train(was_training)
    return best


class _Trial:
    """What the gates say of validation images, and what becomes of it with less trust.

    Attributes:
        centre: What they say of most images, (L, K).
    """

    def __init__(
        self, net: DynamicNetwork, data: Labelled, budgets: Sequence[float], images: int
    ) -> None:
        device = next(net.parameters()).device
        self._net, self._budgets = net, budgets
        self._every = max(1, len(budgets) // JUDGED)
        self._judge = Judge(net, data, images)
        self._costs = torch.tensor(net.options.costs, device=device)
        self._said = [_said(net, self._judge.batches, budget) for budget in budgets]
        self.centre = self._said[len(budgets) // 2].mean(0)

    def loss(self, trust: Trust) -> tuple[int, float]:
        """How many budgets no lean meets, for decisions jump past them; the cross-entropy's sum.

        Whether a budget is met follows from what gates say; the network runs for the loss alone.
        """
        net, weights = self._net, self._net.lean_weights
        missed, total = 0, 0.0
        assert net.gate is not None
        rest = trust.rest(self.centre)
        for index, (budget, said) in enumerate(zip(self._budgets, self._said, strict=True)):
            logits = net.gate.logits_of(trust.images * said + rest)
            lean = lean_to(logits + net.barred, self._costs, weights, budget)
            chosen = (logits + lean * weights + net.barred).argmax(-1)
            off = float(self._costs[chosen].mean()) - budget
            missed += abs(off) > FAR_OFF * budget
            if index % self._every == 0:
                total += self._judge.loss(chosen)
        return missed, total


def _said(net: DynamicNetwork, batches: Sequence[Tensor], budget: float) -> Tensor:
    """What the gates say, (B, L, K), on the path that they choose for the mean image."""
    assert net.gate is not None
    costs, weights = torch.tensor(net.options.costs), net.lean_weights.cpu()
    path = [len(net.options) - 1] * len(net.blocks)
    told = budget if net.spec.gate.budget_input else None
    for _ in range(APPROACHES):
        mean = net.gate_logits_on(net.walk(batches[0], path)[0], told).mean(0).cpu()
        path = leaned_path(mean, costs, weights, budget)
    logits = [net.gate_logits_on(net.walk(batch, path)[0], told, barred=False) for batch in batches]
    return net.gate.said_by(torch.cat(logits))
