"""What ends a training: statistics of the finished weights, and the operating points.

Each part is a function that returns what it finds (`shrinkage`, `norms`, `multipliers`, `cascade`);
what a network takes of it is applied here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fracskip.config import GateStage, JointStage
from fracskip.dynamic import DynamicNetwork
from fracskip.operating import OperatingPoints
from fracskip.training.batches import Labelled
from fracskip.training.cascade import best_cascade
from fracskip.training.multipliers import (
    mean_allocation,
    multiplier_curve,
    shortfall,
    target_multiplier,
)
from fracskip.training.norms import norm_statistics
from fracskip.training.objective import spread
from fracskip.training.shrinkage import Shrinkage, choose_shrinkage


@dataclass(frozen=True)
class Finalized:
    """What a training ends with.

    Attributes:
        points: How the network is operated.
        norms: How BatchNorm statistics were estimated, if they were; see `norm_statistics`.
        cascade_gain: Accuracy that the cascade gains on validation images; None without a search.
        shortfall: What was asked for and is not reached, in a sentence.
    """

    points: OperatingPoints
    norms: str | None = None
    cascade_gain: float | None = None
    shortfall: str | None = None


def finalize(
    net: DynamicNetwork, validation: Labelled, joint: JointStage, images: Sequence[Tensor] = ()
) -> Finalized:
    """Ends a training: BatchNorm statistics, multipliers and cascade of the finished weights.

    Args:
        net: A network with gates, which is given what is found.
        validation: Images and labels, which the weights have not learned.
        joint: Target, budgets, and whether a cascade is asked for.
        images: Normalised training images (B, C, H, W) from which statistics are estimated; none
            leaves them as they are.
    """
    assert net.gate is not None
    net.gate.round_embeddings()
    norms, reached = calibrate(net, validation, joint, images)
    points = net.operating_points
    if joint.aim != "budgets":
        curve = multiplier_curve(net, validation, joint.budgets)
        points = _within_reach(points.changed(multiplier_curve=curve, cascade=()), joint)
        net.operating_points = points
    gain = None
    if joint.members == 2 and points.multiplier_curve:
        cascade, gain = best_cascade(net, validation)
        net.operating_points = points.changed(cascade=cascade)
    lacking = shortfall(points, joint, reached)
    return Finalized(net.operating_points, norms, gain, lacking)


def calibrate(
    net: DynamicNetwork, validation: Labelled, joint: JointStage, images: Sequence[Tensor]
) -> tuple[str | None, float]:
    """Brings costs to what is asked for, and BatchNorm statistics to the weights.

    Args:
        net: The network, which is given what is found.
        validation: Images and labels.
        joint: Target and budgets.
        images: See `finalize`.

    Returns:
        How statistics were estimated, if they were; and the cost nearest to the target.
    """
    reached = _calibrate_multipliers(net, validation, joint)
    if not images:
        return None, reached
    norms, statistics = norm_statistics(net, images, _at_all_budgets(net, images), validation)
    net.load_state_dict(statistics, strict=False)
    # Other statistics, slightly other decisions.
    return norms, _calibrate_multipliers(net, validation, joint)


def _calibrate_multipliers(net: DynamicNetwork, validation: Labelled, joint: JointStage) -> float:
    """The multiplier for the target, and the curve where budgets are the aim; the cost reached."""
    if joint.decisions == "static":
        return joint.target  # they are what they are
    # A curve that a network brings along is of other weights.
    budgets = joint.budgets if joint.aim == "budgets" else ()
    curve = multiplier_curve(net, validation, budgets)
    points = net.operating_points.changed(multiplier_curve=curve, cascade=())
    net.operating_points = points = _within_reach(points, joint)
    assert points.target is not None
    multiplier, reached = target_multiplier(net, validation, points.target)
    net.operating_points = points.changed(multiplier=multiplier)
    return reached


def _within_reach(points: OperatingPoints, joint: JointStage) -> OperatingPoints:
    """Moves a target that was asked for among budgets onto the curve that was measured."""
    target = joint.target
    if points.range and min(joint.budgets) <= target <= max(joint.budgets):
        low, high = points.range
        target = min(max(target, low), high)
    return points.changed(target=target)


@torch.no_grad()
def _at_all_budgets(net: DynamicNetwork, images: Sequence[Tensor]) -> list[Tensor] | None:
    """Decisions at budgets from the least to the largest; None for what the gates choose."""
    if net.operating_points.range is None:
        return None
    low, high = net.operating_points.range
    return [
        net(batch, budget=spread(low, high, (index + 0.5) / len(images))).decisions
        for index, batch in enumerate(images)
    ]


def shrink(
    net: DynamicNetwork, validation: Labelled, gates: GateStage, joint: JointStage
) -> Shrinkage | None:
    """Shrinks a gate's head outputs as far as validation images choose; how far, if asked."""
    if net.gate is None or not (gates.shrinkage or gates.block_shrinkage):
        return None
    budgets = sorted(joint.budgets) or [joint.target]
    found = choose_shrinkage(net, validation, budgets, gates.shrinkage, gates.block_shrinkage)
    net.gate.shrink(found.shrinkage.images, found.added)
    return found.shrinkage


def fix_allocation(net: DynamicNetwork, validation: Labelled, joint: JointStage) -> None:
    """Makes the gates choose for every image what they choose for the mean image at the target.

    No multiplier moves it.
    """
    assert net.gate is not None
    net.gate.fix(mean_allocation(net, validation, joint.target))
    net.operating_points = net.operating_points.changed(multiplier=0.0, cascade=())
