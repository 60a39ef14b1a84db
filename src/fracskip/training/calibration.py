"""After training: bringing the realised cost to what is asked for, by a lean (see `ModelSpec`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation import predict
from fracskip.training.batches import Labelled
from fracskip.training.objective import WIDEST_LEAN, leaned_path

ROUNDS = 20
# Off by so much of it, a target or a curve's point is taken at once.
ON_TARGET, CLOSE_ENOUGH = 0.001, 0.01
# So much off it is taken if there is none nearer, and so much if else there were no curve.
FAR_OFF, FARTHEST_OFF = 0.05, 0.25


class LeanSearch:
    """What leans cost; each is measured once. Leaves the network's lean where it last looked.

    A gate that takes a budget is told the one that is looked for, and a curve that the network has
    is dropped: it would put its own lean in place of the one to be measured. So is a cascade, which
    was measured with other leans.

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
        net = self._net
        told = budget if net.spec.gate.budget_input else None
        dropped: dict[str, Any] = {} if told is None else {"curve": ()}
        net.spec = net.spec.model_copy(update={"lean": lean, "cascade": (), **dropped})
        if (told, lean) not in self._cost:
            decisions = predict(net, self._pixels, budget=told).decisions
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

        Costs at other budgets say about where it lies until this one's own do.
        """
        known = [*self._expected, *((lean, cost) for (_, lean), cost in self._cost.items())]
        under = [lean for lean, cost in costs.items() if cost < target]
        over = [lean for lean, cost in costs.items() if cost >= target]
        low, high = max(under, default=-WIDEST_LEAN), min(over, default=WIDEST_LEAN)
        within = [(lean, cost) for lean, cost in known if low < lean < high]
        likely_low = max((lean for lean, cost in within if cost < target), default=low)
        likely_high = min((lean for lean, cost in within if cost >= target), default=high)
        if not known:
            return 0.0
        if not costs:
            return _between(likely_low, likely_high)
        if not under and likely_low > low:
            return likely_low
        if not over and likely_high < high:
            return likely_high
        return _between(low, high)


def _between(low: float, high: float) -> float:
    """The middle of two leans; of their logarithms where far apart: prices span decades."""
    if low * high > 0 and max(abs(low), abs(high)) > 4 * min(abs(low), abs(high)):
        return math.copysign(math.sqrt(low * high), low)
    return (low + high) / 2


def meet_target(net: DynamicNetwork, data: Labelled, target: float, images: int = 1000) -> float:
    """Sets the network's lean to where its mean cost is on the target, or nearest to it.

    Training steers the mean cost of noisy decisions by a lagging price, so it ends near the target,
    seldom on it. The gates' logits say which decisions are close; leaning moves those first.

    Args:
        net: The network; its `spec.lean` is set.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.

    Returns:
        The computation share that the network then has on these images.
    """
    search = LeanSearch(net, data, images)
    return search.cost_at(search.nearest(target, ON_TARGET), target)


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
        net: The network; its `spec.curve` is set, its lean stays.
        data: Validation images; labels are not used.
        budgets: Computation shares. One that no lean comes near (5% of it), because decisions jump
            past it or the options end before it, is left out; where fewer than two would stay, as
            in a network of few blocks, 25% is near enough.
        images: How many images to use.
    """
    lean = net.spec.lean
    known = [(leaned, cost) for cost, leaned in net.spec.curve]
    search = LeanSearch(net, data, images, known)
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
    net.spec = net.spec.model_copy(update={"lean": lean, "curve": curve})
