"""What a bundle holds, as sessions show it: networks, classes, images, what executions cost.

No engine is needed for any of it.

Shapes: B images, L gated blocks of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.config import ImageConfig
from fracskip.cost import CascadeCosts, CostReport, NetworkProfile, account, account_cascade
from fracskip.errors import ConfigError
from fracskip.operating import Execution, Operation, Prediction, Setting
from fracskip.options import Option, OptionSet
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.cascade_bundle import CascadeBundle, CascadePlan
from fracskip.runtime.plan import Plan


class Contents:
    """What a bundle of a network or of a cascade holds.

    Attributes:
        networks: What they are: one, or those of a cascade.
        cascade: How a cascade is operated; None for a network.
        digest: Of the bundle.
        bytes: Of the bundle.
    """

    networks: tuple[Plan, ...]
    cascade: CascadePlan | None
    digest: str
    bytes: int
    _bundle: Bundle | CascadeBundle
    _cascade_costs: CascadeCosts | None

    def _hold(self, bundle: Bundle | CascadeBundle) -> None:
        """Takes a bundle; to be called once, before anything else."""
        self._bundle, self.digest, self.bytes = bundle, bundle.digest, len(bundle.data)
        if isinstance(bundle, CascadeBundle):
            self.networks, self.cascade = bundle.plan.networks, bundle.plan
            self._cascade_costs = CascadeCosts.of(*_priced(bundle.plan))
        else:
            self.networks, self.cascade, self._cascade_costs = (bundle.plan,), None, None

    @property
    def plan(self) -> Plan:
        """What the network is.

        Raises:
            ConfigError: if it is a cascade of several.
        """
        if self.cascade is not None:
            raise ConfigError(
                "this session runs a cascade of several networks: use session.networks"
            )
        return self.networks[0]

    @property
    def bundle(self) -> Bundle:
        """The network's.

        Raises:
            ConfigError: if this is a cascade of several.
        """
        if isinstance(self._bundle, CascadeBundle):
            raise ConfigError("this session runs a cascade of several networks, not one")
        return self._bundle

    @property
    def options(self) -> OptionSet:
        """What a decision's index stands for, in a network."""
        return self.plan.option_set

    @property
    def profile(self) -> NetworkProfile:
        """A network's MACs."""
        return self.plan.cost

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a logit's index stands for."""
        return self.networks[0].class_names

    @property
    def image(self) -> ImageConfig:
        """Size, channels and normalisation of its images; in a cascade the largest network's."""
        return self.networks[0].image if self.cascade is None else self.cascade.image

    @property
    def budgets(self) -> tuple[float, float] | None:
        """The smallest and the largest budget that a caller may name; None if it takes none."""
        return self.plan.budgets if self.cascade is None else self.cascade.budgets

    def cost(self, executed: Prediction[NDArray[Any]] | NDArray[np.integer]) -> CostReport:
        """Prices what was executed: see `fracskip.cost.account` and `account_cascade`.

        Args:
            executed: A prediction; or the decisions (B, L) of a network.
        """
        if not isinstance(executed, Prediction):
            return account(executed, self.options, self.profile)
        if self.cascade is None:
            return account(executed.executions, self.options, self.profile)
        networks, last = _priced(self.cascade)
        return account_cascade(executed.executions, networks, last)

    def forced(self, option: Option | int | str, images: int) -> NDArray[np.uint8]:
        """Decisions (B, L) that give every block of a network the same option.

        Raises:
            ConfigError: if the option is not in the set.
        """
        shape = (images, len(self.plan.gated_names))
        return np.full(shape, self.options.index(option), dtype=np.uint8)

    def alone(self, budget: ArrayLike | None, count: int, forced: bool = False) -> Operation:
        """How a network answers B images by itself, without a cascade of its own."""
        if forced:
            return Operation((Setting(np.zeros((), np.float32), None),))
        points = self.plan.operating_points
        return Operation((points.alone(budget, count, self.plan.budget_input),))

    def costs(
        self, executions: Sequence[Execution[NDArray[Any]]], count: int
    ) -> NDArray[np.float32]:
        """Of each image; see `Prediction`."""
        if self._cascade_costs is not None:
            return self._cascade_costs.of_images(executions, count)
        costs = np.array(self.options.costs, np.float32)
        total = np.zeros(count, np.float32)
        for each in executions:
            if each.decisions.shape[1]:
                total[each.rows] += costs[each.decisions].mean(1)
            else:
                total[each.rows] += 1
        return total


def _priced(cascade: CascadePlan) -> tuple[list[tuple[OptionSet, NetworkProfile]], int]:
    """Options and MACs of a cascade's networks, and which one is the last member's."""
    return [(plan.option_set, plan.cost) for plan in cascade.networks], cascade.members[-1].network
