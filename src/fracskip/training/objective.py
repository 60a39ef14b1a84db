"""What the joint stage minimises: cross-entropy and the price of computation.

Both forms see only the batch's mean cost, so images are free to share a budget unequally.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fracskip.config import JointStage

PROPORTIONAL = 10.0  # the price's immediate answer to an error, in units of its rate
LARGEST_SUBSIDY = 0.1  # how far below zero the price may settle
LARGEST_PRICE = 1.0  # computation never weighs more than a nat of cross-entropy
LARGEST_MULTIPLIER = 64.0  # that 'balance' may come to
LARGEST_SEARCHED = 1024.0  # of multipliers
SEARCH_ROUNDS = 28
SMALLEST_SLOPE = 1e-3
LARGEST_MOVE = 1.0  # what one batch may claim the price to be wrong by


def target_at(config: JointStage, start: float, progress: float) -> float:
    """The cost aimed at: falls from `start` to the target on a straight line in log cost.

    Args:
        config: Target and share of the stage in which it is approached.
        start: Cost at the stage's beginning.
        progress: Share of the stage that is done.
    """
    if progress >= config.descent or config.target >= start:
        return config.target
    return float(start * (config.target / start) ** (progress / config.descent))


@dataclass
class CostPrice:
    """A price on computation that rises while too much of it is used (a PI controller).

    loss = price · cost / target. The integral part is the state that a resumed run needs; it
    settles at the exchange rate between accuracy and computation. Under the target the price may
    become a small subsidy: on training images that are all but learned, the cross-entropy alone
    would not lead a network that has overshot back to its target.
    """

    rate: float
    integral: float = 0.0

    def penalty(self, cost: Tensor, target: float) -> Tensor:
        """The term to add to the loss; moves the price.

        Args:
            cost: Relative cost of each image (B,), with the gates' gradient.
            target: The mean to reach.
        """
        mean = cost.mean()
        # A long way above the target says no more than "above".
        error = min(float(mean.detach()) / target - 1, 1.0)
        self.integral = _price(self.integral + self.rate * error)
        price = self.integral + PROPORTIONAL * self.rate * error
        return price * mean / target


@dataclass
class CostBalance:
    """A multiplier that holds the cost at the target, and the price at which gates do not drift.

    Gates answer a price late: it travels through the gradient, an optimiser's memory and layers
    that all blocks share, so a price that follows the cost overshoots, and all gates with it. Here
    the mean cost is held by the multiplier of the decision rule (`fracskip.operating.decision`),
    which acts at once. The gradient then has to say which images and blocks get the computation,
    not how much there is: the price is moved to where the loss, price included, has no slope along
    the multiplier. It cannot wind up, because it follows from the gradient and not from an error
    that accumulates.

    Multiplier and price are the state that a resumed run needs.

    Attributes:
        rate: How fast the price follows its estimate, per step.
        multiplier_rate: How fast the multiplier answers an error, per step.
        price: Of one target's worth of computation.
        multiplier: Of cost in the decisions of the next step.
    """

    rate: float
    multiplier_rate: float = 0.5
    price: float = 0.0
    multiplier: float = 0.0

    def penalty(self, cost: Tensor, target: float) -> Tensor:
        """The term to add to the loss; moves the multiplier.

        Args:
            cost: Relative cost of each image (B,), with the gates' gradient.
            target: The mean to hold.
        """
        mean = cost.mean()
        error = max(-1.0, min(float(mean.detach()) / target - 1, 1.0))
        moved = self.multiplier + self.multiplier_rate * error
        self.multiplier = max(-LARGEST_MULTIPLIER, min(moved, LARGEST_MULTIPLIER))
        return self.price * mean / target

    def follow(self, slope: float, cost_slope: float) -> None:
        """Moves the price towards where the loss has no slope along the multiplier.

        Args:
            slope: Of the whole loss, penalty included, along the multiplier.
            cost_slope: Of cost / target along the multiplier: below 0.
        """
        # Nearly every decision is certain: nothing can be told from so flat a cost.
        steep = max(-cost_slope, SMALLEST_SLOPE)
        step = max(-LARGEST_MOVE, min(-slope / steep, LARGEST_MOVE))
        self.price = _price(self.price - self.rate * step)


def _price(value: float) -> float:
    return max(-LARGEST_SUBSIDY, min(value, LARGEST_PRICE))


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened predictions from a teacher's, times temperature².

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the square keeps the
    gradient's size when the temperature changes.

    Args:
        logits: (B, N).
        teacher: (B, N), without a gradient.
        temperature: Divides both.

    Returns:
        KL(teacher || student), mean over the batch.
    """
    ours = (logits / temperature).log_softmax(-1)
    theirs = (teacher / temperature).log_softmax(-1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def sensitivity(changed: Tensor, predicted: Tensor) -> Tensor:
    """Divergence of each image's changed prediction from the one before, in nats: (B,).

    Args:
        changed: Logits (B, N).
        predicted: Logits (B, N).
    """
    logs = predicted.log_softmax(-1)
    return (logs.exp() * (logs - changed.log_softmax(-1))).sum(-1).clamp_min(0)


def multiplier_at(scores: Tensor, costs: Tensor, weights: Tensor, target: float) -> float:
    """The multiplier at which the blocks' mean cost is nearest to the target.

    Args:
        scores: Each block's over the options, masks included, (..., L, K).
        costs: Of the options, ascending (K,).
        weights: What the multiplier weighs of them, ascending (L, K).
        target: Mean cost over the blocks.
    """

    def cost(multiplier: float) -> float:
        return float(costs[(scores + multiplier * weights).argmin(-1)].mean())

    # Under the target at the one, at or above it at the other.
    cheap, dear = LARGEST_SEARCHED, -LARGEST_SEARCHED
    for _ in range(SEARCH_ROUNDS):
        middle = (cheap + dear) / 2
        cheap, dear = (middle, dear) if cost(middle) < target else (cheap, middle)
    return min((cheap, dear), key=lambda each: abs(cost(each) - target))


def allocation_at(scores: Tensor, costs: Tensor, weights: Tensor, target: float) -> list[int]:
    """The option of each block at the multiplier of `multiplier_at`, from the same arguments."""
    multiplier = multiplier_at(scores, costs, weights, target)
    allocation: list[int] = (scores + multiplier * weights).argmin(-1).tolist()
    return allocation


def spread(low: float, high: float, share: float) -> float:
    """A number between two, a share of the way from one to the other in its logarithm."""
    return float(low * (high / low) ** share)


def decision_information(scores: Tensor) -> Tensor:
    """What a decision tells of its image: mutual information in nats, mean over blocks.

    Decisions are taken as drawn from softmax(-scores): H(mean over images) - mean H(image). It is
    zero where all images are treated alike, however undecided, and largest where each image's
    decision is certain and the images differ.

    Args:
        scores: The gates', (B, L, K).
    """
    logs = (-scores).log_softmax(-1)
    shares = logs.exp()
    marginal = shares.mean(0)
    each = -(shares * logs).sum(-1).mean(0)
    # A share that underflows to zero has no entropy, and no infinite gradient either.
    together = -(marginal * marginal.clamp_min(1e-12).log()).sum(-1)
    return (together - each).mean()


def paper_penalty(cost: Tensor, target: float, beta: float, blocks: int) -> Tensor:
    """The paper's: ± beta x the sum of costs over a batch of 128 and its blocks (DFS, eq. 4).

    Args:
        cost: Relative cost of each image (B,), with the gates' gradient.
        target: The mean to reach: above it the sign is plus, under it minus.
        beta: The factor.
        blocks: Gated blocks.
    """
    mean = cost.mean()
    sign = 1.0 if float(mean.detach()) > target else -1.0
    return sign * beta * 128 * blocks * mean
