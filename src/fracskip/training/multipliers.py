"""After training: the Lagrange multipliers at which the realised cost is what is asked for.

Functions return what they find and change nothing; `fracskip.training.finalize` applies it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fracskip.config import JointStage
from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.operating import MultiplierCurve, OperatingPoints
from fracskip.training.batches import Labelled
from fracskip.training.objective import LARGEST_SEARCHED, allocation_at
from fracskip.training.validation import predicted

ROUNDS = 20
# Off by so much of it, a target or a curve's point is taken at once.
ON_TARGET, CLOSE_ENOUGH = 0.001, 0.01
# So much off it is taken if there is none nearer, and so much if else there were no curve.
FAR_OFF, FARTHEST_OFF = 0.05, 0.25
FAR_APART = 2.0  # costs, as a ratio
LEAST_SHARE = 0.1  # of the way between two multipliers

Measured = tuple[float, float]  # a multiplier, and what it costs


class MultiplierSearch:
    """What multipliers cost; each is measured once. The network stays as it is.

    A gate that takes a budget is given the one that is searched for. Curve and cascade are left
    aside: they would put other multipliers in place of the one to be measured.

    Args:
        net: The network. A curve that it has says where to search first.
        data: Validation images; labels are not used.
        images: How many of them to use.
    """

    def __init__(self, net: DynamicNetwork, data: Labelled, images: int = 1000) -> None:
        self._net = net
        self._pixels = data.images[:images]
        self._cost: dict[tuple[float | None, float], float] = {}
        points = net.operating_points
        self._expected = [(multiplier, cost) for cost, multiplier in points.multiplier_curve]

    def cost_at(self, multiplier: float, budget: float | None = None) -> float:
        """The computation share at a multiplier, the gate being given a budget."""
        net = self._net
        given = budget if net.spec.gate.budget_input else None
        if (given, multiplier) not in self._cost:
            target = net.operating_points.target
            points = OperatingPoints(target=target, multiplier=multiplier)
            found = predicted(net, points, self._pixels, given)
            report = account(found.executions, net.options, net.profile)
            self._cost[given, multiplier] = report.cp
        return self._cost[given, multiplier]

    def _measured(self, budget: float) -> dict[float, float]:
        """What is known of multipliers where this budget is given: their costs."""
        given = budget if self._net.spec.gate.budget_input else None
        return {each: cost for (known, each), cost in self._cost.items() if known == given}

    def nearest(self, target: float, tolerance: float) -> float:
        """The multiplier, of those tried, whose cost is nearest; of equals the smallest.

        Args:
            target: Computation share.
            tolerance: How far off, as a share of the target, is near enough to stop.
        """
        for _ in range(1 + ROUNDS):
            costs = self._measured(target)
            if any(abs(cost - target) <= tolerance * target for cost in costs.values()):
                break
            self.cost_at(self._next(costs, target), target)
        costs = self._measured(target)
        return min(costs, key=lambda each: (abs(costs[each] - target), abs(each)))

    def _next(self, costs: dict[float, float], target: float) -> float:
        """The multiplier to try next.

        Costs at other budgets say about where it lies until this one's own do. Between two
        multipliers whose costs are close it lies where an even rise would put it; but every second
        time, as between others, in the middle, for costs may jump.
        """
        known = [*self._expected, *((each, cost) for (_, each), cost in self._cost.items())]
        if not known:
            return 0.0
        # Less cost has the larger multiplier.
        lowest, highest = (LARGEST_SEARCHED, 0.0), (-LARGEST_SEARCHED, math.inf)
        low, high = _around(list(costs.items()), target, lowest, highest)
        within = [each for each in known if low[0] > each[0] > high[0]]
        likely_low, likely_high = _around(within, target, low, high)
        if not costs:
            share = _share_between(likely_low[1], likely_high[1], target)
            return _between(likely_low[0], likely_high[0], share)
        if low == lowest and likely_low[0] < low[0]:
            return likely_low[0]
        if high == highest and likely_high[0] > high[0]:
            return likely_high[0]
        share = 0.5 if len(costs) % 2 else _share_between(low[1], high[1], target)
        return _between(low[0], high[0], min(max(share, LEAST_SHARE), 1 - LEAST_SHARE))


def _around(
    measured: Sequence[Measured], target: float, low: Measured, high: Measured
) -> tuple[Measured, Measured]:
    """The nearest on both sides of a target, or what is given where there is none."""

    def order(each: Measured) -> tuple[float, float]:
        return -each[0], each[1]

    under = (each for each in measured if each[1] < target)
    over = (each for each in measured if each[1] >= target)
    return max(under, default=low, key=order), min(over, default=high, key=order)


def _share_between(low: float, high: float, cost: float) -> float:
    """How far up from one cost to another a third one is; half where they say little of it."""
    if high > FAR_APART * low:
        return 0.5
    return math.log(cost / low) / math.log(high / low)


def _between(low: float, high: float, share: float) -> float:
    """A multiplier between two; by their logarithms where far apart: prices span decades."""
    if low * high > 0 and max(abs(low), abs(high)) > 4 * min(abs(low), abs(high)):
        return math.copysign(abs(low) ** (1 - share) * abs(high) ** share, low)
    return low + share * (high - low)


def target_multiplier(
    net: DynamicNetwork, data: Labelled, target: float, images: int = 1000
) -> Measured:
    """The multiplier at which the network's mean cost is on a target, or nearest to it.

    Training steers the mean cost of noisy decisions by a lagging price, so it ends near the target,
    seldom on it. The gates' scores say which decisions are close; a multiplier moves those first.

    Args:
        net: The network.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.

    Returns:
        The multiplier, and the computation share that the network then has on these images.
    """
    search = MultiplierSearch(net, data, images)
    multiplier = search.nearest(target, ON_TARGET)
    return multiplier, search.cost_at(multiplier, target)


def multiplier_curve(
    net: DynamicNetwork, data: Labelled, budgets: Sequence[float], images: int = 1000
) -> MultiplierCurve:
    """Which multipliers meet which budgets, so that callers may name any between them.

    Args:
        net: The network.
        data: Validation images; labels are not used.
        budgets: Computation shares. One that no multiplier comes near (5% of it), because decisions
            jump past it or the options end before it, is left out; where fewer than two would stay,
            as in a network of few blocks, 25% is near enough.
        images: How many images to use.

    Returns:
        (cost, multiplier) pairs; none where fewer than two budgets are met.
    """
    search = MultiplierSearch(net, data, images)
    found = {budget: search.nearest(budget, CLOSE_ENOUGH) for budget in sorted(budgets)}
    points: list[tuple[float, float]] = []
    for tolerance in (FAR_OFF, FARTHEST_OFF):
        points = []
        for budget, multiplier in found.items():
            near = abs(search.cost_at(multiplier, budget) - budget) < tolerance * budget
            if near and (not points or multiplier < points[-1][1]):
                points.append((budget, multiplier))
        if len(points) > 1:
            break
    return tuple(points) if len(points) > 1 else ()


@torch.no_grad()
def mean_allocation(
    net: DynamicNetwork, data: Labelled, target: float, images: int = 500
) -> list[int]:
    """The allocation that the mean scores give at a target while it is executed.

    Args:
        net: A network with gates.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.

    Returns:
        An option's index for each block; see `Gate.fix`.
    """
    multiplier, _ = target_multiplier(net, data, target)
    points = net.operating_points.changed(multiplier=multiplier, cascade=())
    found = predicted(net, points, data.images[:images])
    usual = torch.from_numpy(found.decisions).mode(0).values.tolist()
    device = next(net.parameters()).device
    pixels = preprocess(torch.from_numpy(data.images[:images]).to(device), net.spec.image)
    scores = net.gate_scores_on(net.execute_allocation(pixels, usual)[0]) + net.mask
    costs, weights = torch.tensor(net.options.costs), net.cost_weights.cpu()
    return allocation_at(scores.mean(0).cpu(), costs, weights, target)


def shortfall(points: OperatingPoints, joint: JointStage, reached: float) -> str | None:
    """What was asked for and is not reached, in a sentence; None where all of it is.

    Args:
        points: Of the network, once its costs are measured.
        joint: What was asked for.
        reached: The computation share that came nearest to the target.
    """
    if joint.decisions == "static":
        return None
    advice = "train longer, or ask for other budgets"
    if not joint.budgets:
        if abs(reached - joint.target) <= FAR_OFF * joint.target:
            return None
        return (
            f"the target of {joint.target:.4g} is not met, for decisions jump past it; the nearest "
            f"cost is {reached:.4g}: {advice}"
        )
    if not points.multiplier_curve:
        return (
            "decisions jump past the budgets that were asked for, so that no two of them can be "
            f"met; the network has one cost, {reached:.4g}: {advice}"
        )
    (low, _), *_, (high, _) = points.multiplier_curve
    least, most = min(joint.budgets), max(joint.budgets)
    if low <= least and high >= most:
        return None
    return (
        f"budgets from {least:.4g} to {most:.4g} were asked for, and decisions reach {low:.4g} to "
        f"{high:.4g}: the network takes these, with a target of {points.target:.4g}; for more, "
        f"{advice}"
    )
