"""After training: bringing the realised cost to what is asked for, by a lean (see `ModelSpec`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fracskip.config import JointStage, ModelSpec
from fracskip.cost import BudgetCurve, account
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.objective import WIDEST_LEAN, leaned_path

ROUNDS = 20
# Off by so much of it, a target or a curve's point is taken at once.
ON_TARGET, CLOSE_ENOUGH = 0.001, 0.01
# So much off it is taken if there is none nearer, and so much if else there were no curve.
FAR_OFF, FARTHEST_OFF = 0.05, 0.25
FAR_APART = 2.0  # costs, as a ratio
LEAST_SHARE = 0.1  # of the way between two leans


class LeanSearch:
    """What leans cost; each is measured once. The network stays as it is.

    A gate that takes a budget is told the one that is looked for, and a curve that the network has
    is left aside: it would put its own lean in place of the one to be measured. So is a cascade,
    which was measured with other leans.

    Args:
        net: The network.
        data: Validation images; labels are not used.
        images: How many of them to use.
        expected: Leans and about what they cost: where to look first.
    """

    def __init__(
        self,
        net: DynamicNetwork,
        data: Labelled,
        images: int = 1000,
        expected: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._net = net
        self._pixels = data.images[:images]
        self._cost: dict[tuple[float | None, float], float] = {}
        self._expected = list(expected)

    def cost_at(self, lean: float, budget: float | None = None) -> float:
        """The computation share at a lean, the gate being told a budget."""
        net, spec = self._net, self._net.spec
        told = budget if spec.gate.budget_input else None
        if (told, lean) not in self._cost:
            aside: dict[str, Any] = {} if told is None else {"curve": ()}
            net.spec = spec.model_copy(update={"lean": lean, "cascade": (), **aside})
            try:
                decisions = predict(net, self._pixels, budget=told).decisions
            finally:
                net.spec = spec
            self._cost[told, lean] = account(decisions, net.options, net.profile).cp
        return self._cost[told, lean]

    def _measured(self, budget: float) -> dict[float, float]:
        """What is known of leans with this budget told: their costs."""
        told = budget if self._net.spec.gate.budget_input else None
        return {lean: cost for (known, lean), cost in self._cost.items() if known == told}

    def nearest(self, target: float, tolerance: float) -> float:
        """The lean, of those it tries, whose cost is nearest; of equals the one that is smallest.

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
        return min(costs, key=lambda lean: (abs(costs[lean] - target), abs(lean)))

    def _next(self, costs: dict[float, float], target: float) -> float:
        """The lean to look at next.

        Costs at other budgets say about where it lies until this one's own do. Between two leans
        whose costs are close it lies where an even rise would put it; but every second time, as
        between others, in the middle, for costs may jump.
        """
        known = [*self._expected, *((lean, cost) for (_, lean), cost in self._cost.items())]
        if not known:
            return 0.0
        lowest, highest = (-WIDEST_LEAN, 0.0), (WIDEST_LEAN, math.inf)
        low = max((each for each in costs.items() if each[1] < target), default=lowest)
        high = min((each for each in costs.items() if each[1] >= target), default=highest)
        within = [each for each in known if low[0] < each[0] < high[0]]
        likely_low = max((each for each in within if each[1] < target), default=low)
        likely_high = min((each for each in within if each[1] >= target), default=high)
        if not costs:
            share = _share_between(likely_low[1], likely_high[1], target)
            return _between(likely_low[0], likely_high[0], share)
        if low == lowest and likely_low[0] > low[0]:
            return likely_low[0]
        if high == highest and likely_high[0] < high[0]:
            return likely_high[0]
        share = 0.5 if len(costs) % 2 else _share_between(low[1], high[1], target)
        return _between(low[0], high[0], min(max(share, LEAST_SHARE), 1 - LEAST_SHARE))


def _share_between(low: float, high: float, cost: float) -> float:
    """How far up from one cost to another a third one is; half where they say little of it."""
    if high > FAR_APART * low:
        return 0.5
    return math.log(cost / low) / math.log(high / low)


def _between(low: float, high: float, share: float) -> float:
    """A lean between two; by their logarithms where far apart: prices span decades."""
    if low * high > 0 and max(abs(low), abs(high)) > 4 * min(abs(low), abs(high)):
        return math.copysign(abs(low) ** (1 - share) * abs(high) ** share, low)
    return low + share * (high - low)


def meet_target(net: DynamicNetwork, data: Labelled, target: float, images: int = 1000) -> float:
    """Sets the network's lean to where its mean cost is on the target, or nearest to it.

    Training steers the mean cost of noisy decisions by a lagging price, so it ends near the target,
    seldom on it. The gates' logits say which decisions are close; leaning moves those first.

    Args:
        net: The network; its `spec.lean` is set and its cascade, measured with another, dropped. A
            curve that it has says where to look first, and stays.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.

    Returns:
        The computation share that the network then has on these images.
    """
    search = LeanSearch(net, data, images, _expected(net))
    lean = search.nearest(target, ON_TARGET)
    net.spec = net.spec.model_copy(update={"lean": lean, "cascade": ()})
    return search.cost_at(lean, target)


def _expected(net: DynamicNetwork) -> list[tuple[float, float]]:
    """What a network's curve says: leans and what they cost."""
    return [(lean, cost) for cost, lean in net.spec.curve]


@torch.no_grad()
def freeze_decisions(net: DynamicNetwork, data: Labelled, target: float, images: int = 500) -> None:
    """Makes the gates choose for every image what they choose for the mean image.

    The path is the one, leaned to the target, that the mean logits give while it is executed. No
    lean moves it.

    Args:
        net: A network with gates, which are changed.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.
    """
    assert net.gate is not None
    meet_target(net, data, target)
    decisions = torch.from_numpy(predict(net, data.images[:images]).decisions)
    path = decisions.mode(0).values.tolist()
    device = next(net.parameters()).device
    pixels = preprocess(torch.from_numpy(data.images[:images]).to(device), net.spec.image)
    mean = net.gate_logits_on(net.walk(pixels, path)[0]).mean(0).cpu()
    weights = net.lean_weights.cpu()
    net.gate.fix(leaned_path(mean, torch.tensor(net.options.costs), weights, target))
    net.spec = net.spec.model_copy(update={"lean": 0.0})


def measure_curve(
    net: DynamicNetwork, data: Labelled, budgets: Sequence[float], images: int = 1000
) -> None:
    """Measures which leans meet which budgets, so that callers may name any between them.

    Args:
        net: The network; its `spec.curve` is set, its cascade dropped, its lean stays. A curve that
            it has says where to look first.
        data: Validation images; labels are not used.
        budgets: Computation shares. One that no lean comes near (5% of it), because decisions jump
            past it or the options end before it, is left out; where fewer than two would stay, as
            in a network of few blocks, 25% is near enough.
        images: How many images to use.
    """
    search = LeanSearch(net, data, images, _expected(net))
    found = {budget: search.nearest(budget, CLOSE_ENOUGH) for budget in sorted(budgets)}
    for tolerance in (FAR_OFF, FARTHEST_OFF):
        points: list[tuple[float, float]] = []
        for budget, leaned in found.items():
            near = abs(search.cost_at(leaned, budget) - budget) < tolerance * budget
            if near and (not points or leaned > points[-1][1]):
                points.append((budget, leaned))
        if len(points) > 1:
            break
    curve = tuple(points) if len(points) > 1 else ()
    net.spec = net.spec.model_copy(update={"curve": curve, "cascade": ()})


def shortfall(spec: ModelSpec, joint: JointStage, reached: float) -> str | None:
    """What was asked for and is not reached, in a sentence; None where all of it is.

    Args:
        spec: Of the network, once its costs are measured.
        joint: What was asked for.
        reached: The computation share that came nearest to the target.
    """
    if joint.decisions == "alike":
        return None
    advice = "train longer, or ask for other budgets"
    if not joint.budgets:
        if abs(reached - joint.target) <= FAR_OFF * joint.target:
            return None
        return (
            f"the target of {joint.target:.4g} is not met, for decisions jump past it; the nearest "
            f"cost is {reached:.4g}: {advice}"
        )
    if not spec.curve:
        return (
            "decisions jump past the budgets that were asked for, so that no two of them can be "
            f"met; the network has one cost, {reached:.4g}: {advice}"
        )
    low, high = BudgetCurve(spec.curve).range
    least, most = min(joint.budgets), max(joint.budgets)
    if low <= least and high >= most:
        return None
    return (
        f"budgets from {least:.4g} to {most:.4g} were asked for, and decisions reach {low:.4g} to "
        f"{high:.4g}: the network takes these, with a target of {spec.target:.4g}; for more, "
        f"{advice}"
    )
