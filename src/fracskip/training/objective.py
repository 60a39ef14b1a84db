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
LARGEST_LEAN = 64.0  # that 'balance' may come to
WIDEST_LEAN = 1024.0  # that a search looks at
LEAN_ROUNDS = 28
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
    """A lean that holds the cost at the target, and the price at which gates do not drift.

    Gates answer a price late: it travels through the gradient, an optimiser's memory and layers
    that all blocks share, so a price that follows the cost overshoots, and all gates with it. Here
    the mean cost is held by the lean, which is added to the gates' logits times the option's rank
    and acts at once. The gradient then has to say which images and blocks get the computation, not
    how much there is: the price is moved to where the loss, price included, has no slope along the
    lean. That is the constraint's Lagrange multiplier, and it cannot wind up, because it follows
    from the gradient and not from an error that accumulates.

    Lean and price are the state that a resumed run needs.

    Attributes:
        rate: How fast the price follows its estimate, per step.
        lean_rate: How fast the lean answers an error, per step.
        price: Of one target's worth of computation.
        lean: To be added to the logits of the next step.
    """

    rate: float
    lean_rate: float = 0.5
    price: float = 0.0
    lean: float = 0.0

    def penalty(self, cost: Tensor, target: float) -> Tensor:
        """The term to add to the loss; moves the lean.

        Args:
            cost: Relative cost of each image (B,), with the gates' gradient.
            target: The mean to hold.
        """
        mean = cost.mean()
        error = max(-1.0, min(float(mean.detach()) / target - 1, 1.0))
        self.lean = max(-LARGEST_LEAN, min(self.lean - self.lean_rate * error, LARGEST_LEAN))
        return self.price * mean / target

    def follow(self, slope: float, cost_slope: float) -> None:
        """Moves the price towards where the loss has no slope along the lean.

        Args:
            slope: Of the whole loss, penalty included, along the lean.
            cost_slope: Of cost / target along the lean.
        """
        # Nearly every decision is certain: nothing can be told from so flat a cost.
        steep = max(cost_slope, SMALLEST_SLOPE)
        step = max(-LARGEST_MOVE, min(slope / steep, LARGEST_MOVE))
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


def harm(changed: Tensor, predicted: Tensor) -> Tensor:
    """Divergence of each image's changed prediction from the one before, in nats: (B,).

    Args:
        changed: Logits (B, N).
        predicted: Logits (B, N).
    """
    logs = predicted.log_softmax(-1)
    return (logs.exp() * (logs - changed.log_softmax(-1))).sum(-1).clamp_min(0)


def lean_to(logits: Tensor, costs: Tensor, lean_weights: Tensor, target: float) -> float:
    """The lean at which the blocks' mean cost is nearest to the target.

    Args:
        logits: Each block's over the options (L, K).
        costs: Of the options, ascending (K,).
        lean_weights: What the lean is multiplied with before it is added, ascending (K,).
        target: Mean cost over the blocks.
    """

    def cost(lean: float) -> float:
        return float(costs[(logits + lean * lean_weights).argmax(-1)].mean())

    low, high = -WIDEST_LEAN, WIDEST_LEAN
    for _ in range(LEAN_ROUNDS):
        lean = (low + high) / 2
        low, high = (lean, high) if cost(lean) < target else (low, lean)
    return min((low, high), key=lambda lean: abs(cost(lean) - target))


def leaned_path(logits: Tensor, costs: Tensor, lean_weights: Tensor, target: float) -> list[int]:
    """The option of each block at the lean of `lean_to`, from the same arguments."""
    lean = lean_to(logits, costs, lean_weights, target)
    path: list[int] = (logits + lean * lean_weights).argmax(-1).tolist()
    return path


def spread(low: float, high: float, share: float) -> float:
    """A number between two, a share of the way from one to the other in its logarithm."""
    return float(low * (high / low) ** share)


def decision_information(scores: Tensor) -> Tensor:
    """What a decision tells of its image: mutual information in nats, mean over blocks.

    Decisions are taken as drawn from softmax(scores): H(mean over images) - mean H(image). It is
    zero where all images are treated alike, however undecided, and largest where each image's
    decision is certain and the images differ.

    Args:
        scores: The gates' logits (B, L, K).
    """
    logs = scores.log_softmax(-1)
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
