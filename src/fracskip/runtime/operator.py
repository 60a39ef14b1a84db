"""Which members answer a call to a cascade, and by which thresholds."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fracskip.errors import ConfigError
from fracskip.operating import Operation
from fracskip.operating.cascade import Choice
from fracskip.operating.tracking import RateTracker
from fracskip.runtime.cascade_bundle import CascadePlan
from fracskip.runtime.timing import Times

CONFIDENCE = 0.95
MOST_KNOWN = 1024  # choices that are remembered: finding one takes longer than an image


@dataclass(frozen=True)
class Asked:
    """What a caller asks of a cascade; see `InferenceSession.run`."""

    budget: ArrayLike | None = None
    latency_us: float | None = None
    max_latency_us: float | None = None
    max_drop: float | None = None
    confidence: float = CONFIDENCE

    @property
    def in_time(self) -> bool:
        """Whether it can be answered only by what members take on a clock."""
        return self.latency_us is not None or self.max_latency_us is not None


class CascadeOperator:
    """Chooses operating points, and remembers what was seen at each.

    Args:
        plan: The cascade's.
    """

    def __init__(self, plan: CascadePlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._known: dict[tuple[Asked, Times | None], Choice] = {}
        self.trackers: dict[Choice, RateTracker] = {}

    def choose(self, asked: Asked, times: Times | None) -> Choice:
        """The operating point for what is asked.

        Args:
            asked: At most one of budget, latency_us and max_drop.
            times: Of the members, if it is in time.

        Raises:
            ConfigError: if there is none such, or several things are asked.
        """
        if asked.budget is not None:
            asked = replace(asked, budget=checked_share(asked.budget))
        found = self._known.get((asked, times))
        if found is None:
            found = self._chosen(asked, times)
            with self._lock:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[asked, times] = found
        return found

    def _chosen(self, asked: Asked, times: Times | None) -> Choice:
        plan = self._plan
        budget, latency_us, max_drop = asked.budget, asked.latency_us, asked.max_drop
        if sum(each is not None for each in (budget, latency_us, max_drop)) > 1:
            raise ConfigError("give one of budget, latency_us and max_drop")
        if max_drop is not None:
            if asked.max_latency_us is not None:
                raise ConfigError("give one of max_drop and max_latency_us")
            return plan.promised(max_drop, asked.confidence, plan.bitops)
        if not asked.in_time:
            return plan.at_cost(checked_share(budget), plan.bitops, "budget {}")
        assert times is not None
        bound, mean_us = None, times.mean_us
        if asked.max_latency_us is not None:
            bound = checked_time(asked.max_latency_us, "max_latency_us")
        if latency_us is not None:
            limit, what = checked_time(latency_us, "latency_us"), "a mean latency of {} us"
        elif budget is not None:
            # The share is of BitOps; what is left within the bound is chosen by them.
            limit, what, mean_us = checked_share(budget), "budget {}", plan.bitops
        else:
            limit, what = math.inf, ""
        return plan.at_cost(limit, mean_us, what, bound, times.longest_us)

    def operation(self, choice: Choice, thresholds: Sequence[float], count: int) -> Operation:
        """How B images are answered.

        Args:
            choice: The members.
            thresholds: Those to use.
            count: B.
        """
        plan, members = self._plan, []
        for index in choice.chain:
            member = plan.members[index]
            network = plan.networks[member.network]
            setting = network.operating_points.alone(member.budget, count, network.budget_input)
            members.append(setting._replace(network=member.network, temperature=member.temperature))
        cuts = tuple(np.full(count, each, np.float32) for each in thresholds)
        return Operation(tuple(members), cuts, plan.score, plan.averaged)

    def tracker(self, choice: Choice) -> RateTracker:
        """What holds an operating point's rates."""
        with self._lock:
            if choice not in self.trackers:
                self.trackers[choice] = RateTracker(
                    choice.rates, choice.thresholds, choice.quantiles, self._plan.images
                )
            return self.trackers[choice]


def checked_time(value: Any, name: str) -> float:
    """Microseconds above 0.

    Raises:
        ConfigError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} {value!r} is no time: give microseconds above 0")
    return float(value)


def checked_share(budget: ArrayLike | None) -> float:
    """One share in (0, 1]; 1 if none is given.

    Raises:
        ConfigError: if it is none.
    """
    values = np.asarray(1.0 if budget is None else budget)
    if values.shape not in ((), (1,)) or values.dtype.kind not in "iuf":
        raise ConfigError(f"budget {budget!r} does not fit a cascade: give one share in (0, 1]")
    value = float(values.reshape(()))
    if not 0 < value <= 1:
        raise ConfigError(f"budget {budget!r} is out of range: give a share in (0, 1]")
    return value
