"""What the joint stage minimises: cross-entropy and the price of computation.

Both forms see only the batch's mean cost, so images are free to share a budget unequally.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fracskip.config import JointStage

PROPORTIONAL = 10.0  # the price's immediate answer to an error, in units of its rate
LARGEST_SUBSIDY = 0.1  # how far below zero the price may settle


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
        self.integral = max(-LARGEST_SUBSIDY, self.integral + self.rate * error)
        price = self.integral + PROPORTIONAL * self.rate * error
        return price * mean / target


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
