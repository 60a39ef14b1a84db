"""The last stage: weights and gates, towards a cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.config import Recipe
from fracskip.dynamic import DynamicNetwork, Exploration
from fracskip.training.objective import (
    CostBalance,
    CostPrice,
    decision_information,
    paper_penalty,
    spread,
    target_at,
)
from fracskip.training.randomness import generator_at
from fracskip.training.schedule import lr_factor
from fracskip.training.shrinkage import Shrinkage
from fracskip.training.stages import AllocationTraining, StepIndex, StepResult, count_correct


class JointTraining(AllocationTraining):
    """Stage 4: weights and gates together, towards the target cost.

    Args:
        net: The network, as the gates' stage left it.
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        teacher: The network to distil from, if the recipe says so.

    Attributes:
        shrinkage: How far head outputs were shrunk, if that was chosen.
    """

    name = "joint"
    shrinkage: Shrinkage | None = None

    def __init__(
        self,
        net: DynamicNetwork,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(net, recipe, recipe.joint, device, bf16, teacher)
        self._config = recipe.joint
        rate = recipe.joint.price_rate
        self._price = CostPrice(rate)
        self._balance: CostBalance | None = None
        if recipe.joint.objective == "balance":
            self._balance = CostBalance(rate, recipe.joint.multiplier_rate)
        if net.gate is not None:
            self.optimisers.append(torch.optim.Adam(net.gate.parameters(), lr=self._config.gate_lr))

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        if self._config.allocation == "batch":
            return {} if self.shrinkage is None else {"shrinkage": asdict(self.shrinkage)}
        if self._balance is not None:
            return {"price": self._balance.price, "multiplier": self._balance.multiplier}
        return {"price": self._price.integral}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        if "shrinkage" in state:
            self.shrinkage = Shrinkage(**state["shrinkage"])
        if self._balance is not None and self._config.allocation != "batch":
            self._balance.price, self._balance.multiplier = state["price"], state["multiplier"]
            self._operate(self._balance.multiplier)
        elif self._config.allocation != "batch":
            self._price.integral = state["price"]

    def _operate(self, multiplier: float) -> None:
        """What validation between epochs sees; the run's end finds the final one."""
        self.net.operating_points = self.net.operating_points.changed(multiplier=multiplier)

    def _target(self, progress: float) -> float:
        start = self.net.options.costs[self.recipe.start_option]
        return target_at(self._config, start, progress)

    def _penalty(self, cost: Tensor, progress: float) -> Tensor:
        target = self._target(progress)
        if self._balance is not None:
            penalty = self._balance.penalty(cost, target)
            self._operate(self._balance.multiplier)
            return penalty
        if self._config.objective == "paper":
            return paper_penalty(cost, target, self._config.beta, len(self.net.blocks))
        return self._price.penalty(cost, target)

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """See `Stage`."""
        config = self._config
        if config.allocation == "batch":
            return self._batch_step(images, labels, at)
        if self.net.gate is None:
            return self.train_allocation(images, labels, [0] * len(self.net.blocks), at)
        multiplier = None
        if self._balance is not None:
            multiplier = torch.tensor(
                self._balance.multiplier, device=images.device, requires_grad=True
            )
        draw = generator_at(self.recipe.seed, "joint", at.epoch, at.step)
        uniform = int(config.uniform_rate * len(labels)) if self.net.gate is not None else 0
        remaining = max(0.0, 1 - at.progress / config.exploration_until)
        exploration = Exploration(
            draw,
            noise=config.exploration * remaining,
            temperature=config.temperature,
            dense=config.gate_gradient == "dense",
            sample_rate=config.sample_rate if config.gate_lr else 0.0,
            uniform=uniform,
            uniform_option=self._uniform_option(draw),
            multiplier=0.0 if multiplier is None else multiplier,
        )
        with self.autocast():
            out = self.net(images, exploration=exploration)
        logits, cost = out.logits.float(), out.cost[uniform:]
        loss = self.learning_loss(logits, images, labels, config)
        if self.net.gate is not None:
            loss = loss + self._penalty(cost, at.progress)
        if config.diversity and out.scores is not None:
            loss = loss - config.diversity * decision_information(out.scores[uniform:])
        factor = lr_factor(config.optim, at.progress)
        rates = [config.optim.lr * factor, config.gate_lr * factor]
        cost_slope = 0.0
        if multiplier is not None and self.net.gate is not None and config.gate_lr:
            (slope,) = torch.autograd.grad(cost.mean(), multiplier, retain_graph=True)
            cost_slope = float(slope) / self._target(at.progress)
        self.update(loss, rates[: len(self.optimisers)], config.optim.clip_norm)
        along = None if multiplier is None else multiplier.grad
        if self._balance is not None and cost_slope and along is not None:
            self._balance.follow(float(along), cost_slope)
        routed = len(labels) - uniform
        return StepResult(
            float(loss.detach()) * routed,
            count_correct(logits[uniform:], labels[uniform:]),
            routed,
            float(cost.detach().sum()),
        )

    def _batch_step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """The allocation of the batch's first image, which was drawn at random, for all of them."""
        draw = generator_at(self.recipe.seed, "joint", at.epoch, at.step)
        drawn, share = torch.rand(2, generator=draw).tolist()
        if drawn < self._config.uniform_rate:
            allocation = [self._uniform_option(draw)] * len(self.net.blocks)
        else:
            with torch.no_grad(), self.autocast():
                found = self.net(images[:1], budget=self._budget(share)).decisions
            allocation = found[0].tolist()
        return self.train_allocation(images, labels, allocation, at)

    def _uniform_option(self, draw: torch.Generator) -> int:
        """An executed option, drawn at random."""
        options = self.net.options
        return int(torch.randint(int(options.can_skip), len(options), (), generator=draw))

    def _budget(self, share: float) -> float | None:
        """One between the least and the largest, if the network serves them all."""
        reach = self.net.operating_points.range
        if self._config.aim != "budgets" or reach is None:
            return None
        return spread(*reach, share)
