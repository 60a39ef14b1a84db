"""Decisions to cost: the paper's computation percentage, the honest BitOps ratio, statistics.

Decisions are integer matrices (images, gated blocks) of indices into an option set. Where images
were looked at twice, they are those of the look that decided, and what went before counts as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fracskip.cost.cascade import Decisions, FirstLooks
from fracskip.cost.profile import NetworkProfile
from fracskip.errors import ConfigError
from fracskip.options import FULL_BITS, OptionSet


@dataclass(frozen=True)
class CostReport:
    """What a set of decisions costs.

    Attributes:
        cp: The paper's computation percentage, as a share: mean of (bits/32)² over images and
            gated blocks, all blocks weighted alike.
        bitops_ratio: BitOps (MACs x weight bits x activation bits) of everything executed - stem,
            ungated blocks, shortcuts, gates and classifier at 32 bits included - over the plain
            network's at 32 bits. Above 1 when a network with gates runs everything in full.
        image_cp: cp of each image, (N,).
    """

    cp: float
    bitops_ratio: float
    image_cp: NDArray[np.float64]


def _checked(decisions: Decisions, options: OptionSet, blocks: int | None = None) -> Decisions:
    if decisions.ndim != 2 or (blocks is not None and decisions.shape[1] != blocks):
        raise ConfigError(
            f"decisions of shape {decisions.shape} do not fit: (images, "
            f"{'blocks' if blocks is None else blocks}) is needed"
        )
    if len(decisions) == 0:
        raise ConfigError("decisions of no image have no cost: give at least one row")
    if decisions.size and not (0 <= decisions.min() and decisions.max() < len(options)):
        raise ConfigError(f"decisions must be option indices from 0 to {len(options) - 1}")
    return decisions


def account(
    decisions: Decisions,
    options: OptionSet,
    profile: NetworkProfile,
    before: FirstLooks | None = None,
) -> CostReport:
    """Costs a decision matrix.

    Args:
        decisions: Option indices, (N, gated blocks), N at least 1.
        options: What the indices mean.
        profile: The network's MACs.
        before: What was executed for the same images before, if some were looked at twice.

    Raises:
        ConfigError: if the shape or the indices do not fit.
    """
    gated = profile.gated
    bits = np.array([option.bits for option in options], dtype=np.float64)
    costs = (bits / FULL_BITS) ** 2
    cost = costs[_checked(decisions, options, len(gated))]
    fixed = profile.fixed_macs
    if before is not None:
        first = _checked(before.decisions, options, len(gated))
        if not len(first) == len(before.again) == len(decisions):
            raise ConfigError(
                f"first looks at {len(first)} images, with {len(before.again)} words on a second, "
                f"do not fit decisions for {len(decisions)}"
            )
        cost = cost + costs[first] * before.again[:, None]
        fixed += profile.second_look_macs * before.again.mean()
    branch = np.array([block.branch_macs for block in gated], dtype=np.float64)
    executed = fixed + (cost @ branch).mean()
    image_cp = cost.mean(axis=1) if gated else np.ones(len(decisions))
    return CostReport(float(image_cp.mean()), float(executed / profile.backbone_macs), image_cp)


def option_shares(decisions: Decisions, options: OptionSet) -> NDArray[np.float64]:
    """Share of images that take each option, per block: (blocks, options), rows sum to 1."""
    decisions = _checked(decisions, options)
    chosen = decisions[:, :, None] == np.arange(len(options))
    return np.asarray(chosen.mean(axis=0), dtype=np.float64)


def decision_entropy_bits(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each block's decisions over images, in bits.

    0 means that every image takes the same option: static mixed precision in disguise.

    Args:
        shares: (blocks, options), as `option_shares` gives them.
    """
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.abs((shares * logs).sum(axis=-1)))
