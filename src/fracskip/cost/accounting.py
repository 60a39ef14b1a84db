"""Decisions to cost: the paper's computation percentage, the honest BitOps ratio, statistics.

Decisions are integer matrices (images, gated blocks) of indices into an option set, one for each
member of a cascade that executed something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.cost.profile import NetworkProfile
from fracskip.errors import ConfigError
from fracskip.operating import Execution
from fracskip.options import FULL_BITS, OptionSet

Decisions = NDArray[np.integer]


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
        image_bitops: BitOps ratio of each image, (N,).
    """

    cp: float
    bitops_ratio: float
    image_cp: NDArray[np.float64]
    image_bitops: NDArray[np.float64]


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
    executions: Sequence[Execution[NDArray[np.integer]]] | Decisions,
    options: OptionSet,
    profile: NetworkProfile,
) -> CostReport:
    """Costs what the members of a cascade executed: one network, at several budgets.

    Args:
        executions: Of a prediction: the first of all N images, at least 1; or the decisions of one
            member alone, (N, gated blocks).
        options: What decisions mean.
        profile: The network's MACs.

    Raises:
        ConfigError: if the shape or the indices do not fit.
    """
    if isinstance(executions, np.ndarray):
        count = executions.shape[0] if executions.ndim else 0
        executions = [Execution(np.arange(count), executions)]
    gated = profile.gated
    bits = np.array([option.bits for option in options], dtype=np.float64)
    costs = (bits / FULL_BITS) ** 2
    first, *others = executions
    cost = costs[_checked(first.decisions, options, len(gated))]
    fixed = np.full(len(cost), profile.fixed_macs)
    for other in others:
        if len(other.rows) != len(other.decisions):
            raise ConfigError(
                f"decisions of {len(other.decisions)} images do not fit {len(other.rows)} rows: "
                "give one for each"
            )
        if len(other.rows):
            cost[other.rows] += costs[_checked(other.decisions, options, len(gated))]
        fixed[other.rows] += profile.repeated_macs
    branch = np.array([block.branch_macs for block in gated], dtype=np.float64)
    image_bitops = (fixed + cost @ branch) / profile.backbone_macs
    image_cp = cost.mean(axis=1) if gated else np.ones(len(cost))
    return CostReport(float(image_cp.mean()), float(image_bitops.mean()), image_cp, image_bitops)


def account_cascade(
    executions: Sequence[Execution[NDArray[np.integer]]],
    networks: Sequence[tuple[OptionSet, NetworkProfile]],
    last: int,
) -> CostReport:
    """Costs what a cascade of several networks executed, in units of one of them.

    Args:
        executions: Of a prediction: the first of all N images, at least 1.
        networks: Options and MACs of each.
        last: The number of the last member's network: its plain form at 32 bits is the unit. A
            member's cp counts by its network's MACs over that one's.

    Raises:
        ConfigError: if the shape or the indices do not fit.
    """
    count, unit = len(executions[0].rows), networks[last][1].backbone_macs
    image_cp, image_bitops, before = np.zeros(count), np.zeros(count), -1
    for each in executions:
        options, profile = networks[each.network]
        if len(each.rows):
            found = account(each.decisions, options, profile)
            weight = profile.backbone_macs / unit
            # A network that follows itself goes on from its first gated block.
            resumed = each.network == before and len(options) > 1
            spared = (profile.fixed_macs - profile.repeated_macs) / unit if resumed else 0.0
            image_cp[each.rows] += found.image_cp * weight
            image_bitops[each.rows] += found.image_bitops * weight - spared
        before = each.network
    return CostReport(float(image_cp.mean()), float(image_bitops.mean()), image_cp, image_bitops)


@dataclass(frozen=True)
class CascadeCosts:
    """What `account_cascade` says of each image's BitOps, prepared for calls of one image.

    Attributes:
        networks: Of each: what every image executes, what it executes where the network follows
            itself, and what options add, (L, K); None for a static network.
    """

    networks: tuple[tuple[float, float, NDArray[np.float64] | None], ...]

    @classmethod
    def of(cls, networks: Sequence[tuple[OptionSet, NetworkProfile]], last: int) -> CascadeCosts:
        """Of networks, in units of one of them; see `account_cascade`."""
        unit = networks[last][1].backbone_macs
        found: list[tuple[float, float, NDArray[np.float64] | None]] = []
        for options, profile in networks:
            branch = np.array([block.branch_macs for block in profile.gated], np.float64) / unit
            table = branch[:, None] * np.array(options.costs, np.float64)
            fixed, repeated = profile.fixed_macs / unit, profile.repeated_macs / unit
            if len(options) == 1:  # nothing differs between images, and it starts anew
                whole = fixed + float(table.sum())
                found.append((whole, whole, None))
            else:
                found.append((fixed, repeated, table))
        return cls(tuple(found))

    def of_images(
        self, executions: Sequence[Execution[NDArray[np.integer]]], count: int
    ) -> NDArray[np.float32]:
        """The BitOps ratio of each of N images, (N,)."""
        total, before = np.zeros(count, np.float64), -1
        for each in executions:
            fixed, repeated, table = self.networks[each.network]
            own: Any = repeated if each.network == before else fixed
            if table is not None:
                own = own + table[np.arange(len(table)), each.decisions].sum(1)
            total[each.rows] += own
            before = each.network
        return total.astype(np.float32)


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
