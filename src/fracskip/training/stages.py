"""The three stages: a backbone, gates that choose full execution, everything towards a target.

A stage knows its network, its optimisers and one step. The loop knows the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import Recipe
from fracskip.cost import BudgetCurve
from fracskip.dynamic import DynamicNetwork, Mixing
from fracskip.models import CifarResNet, fused
from fracskip.training.depth import draw_by_depth, draw_by_harm
from fracskip.training.objective import (
    CostBalance,
    CostPrice,
    decision_information,
    distillation,
    harm,
    leaned_path,
    paper_penalty,
    target_at,
)
from fracskip.training.randomness import generator_at
from fracskip.training.schedule import lr_factor, weight_optimiser

HARMLESS = 1e-4  # nats by which a prediction may change for a decision to be even
HARM_RANGE = (1e-6, 10.0)  # outside it, more or less harm makes no difference
HARM_BLOCKS = 2  # blocks tried in a step


@dataclass(frozen=True)
class Place:
    """Where a step stands.

    Attributes:
        epoch: From 0.
        step: Within the epoch, from 0.
        progress: Share of the stage that is done, in [0, 1).
    """

    epoch: int
    step: int
    progress: float


@dataclass(frozen=True)
class StepResult:
    """What a step did, summed over its images.

    Attributes:
        loss: Sum of losses.
        correct: Images classified right (in the gates' stage: decisions for its option).
        images: Images.
        cost: Sum of relative costs; None in a stage without decisions.
    """

    loss: float
    correct: float
    images: int
    cost: float | None


class Stage(Protocol):
    """What the loop asks of a stage."""

    name: str
    epochs: int
    optimisers: list[torch.optim.Optimizer]

    @property
    def net(self) -> nn.Module:
        """What it trains."""
        ...

    def step(self, images: Tensor, labels: Tensor, place: Place) -> StepResult:
        """Trains on one batch: images (B, C, H, W), labels (B,)."""
        ...

    def lr(self, progress: float) -> float:
        """The (first) learning rate at a point of the stage."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON values that a resumed stage needs beyond network and optimisers."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        ...


class _Base:
    """What the stages share."""

    optimisers: list[torch.optim.Optimizer]

    def __init__(self, recipe: Recipe, device: torch.device, bf16: bool) -> None:
        self.recipe = recipe
        self._autocast = {
            "device_type": device.type,
            "dtype": torch.bfloat16,
            "enabled": bf16,
        }

    def autocast(self) -> torch.autocast:
        return torch.autocast(**self._autocast)  # type: ignore[arg-type]

    def update(self, loss: Tensor, rates: list[float], clip_norm: float = 0.0) -> None:
        for optimiser, rate in zip(self.optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_norm:
            # The first optimiser holds the weights.
            groups = self.optimisers[0].param_groups
            weights = [value for group in groups for value in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state


def _correct(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).sum())


class BackboneTraining(_Base):
    """Stage 1: plain supervised training of the plain network, or of parts of it.

    Args:
        net: The network.
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        order: For stochastic depth by harm: its blocks, the most dispensable first.
    """

    name = "backbone"

    def __init__(
        self,
        net: CifarResNet,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        order: Sequence[int] = (),
    ) -> None:
        super().__init__(recipe, device, bf16)
        self.net = net
        self.epochs = recipe.backbone.epochs
        self._config = recipe.backbone.optim
        self._order = list(order)
        self.optimisers = [weight_optimiser(net.named_parameters(), self._config)]
        self._run = torch.compile(net) if recipe.runtime.compile else net

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._config.lr * lr_factor(self._config, progress)

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"skip_order": self._order} if self._order else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self._order = list(state.get("skip_order", ()))

    def _skipped(self, place: Place) -> frozenset[int]:
        """The blocks that this step leaves out."""
        rate = self.recipe.backbone.stochastic_depth
        if not rate:
            return frozenset()
        draw = generator_at(self.recipe.seed, "depth", place.epoch, place.step)
        if self._order:
            return draw_by_harm(self._order, rate, draw)
        return draw_by_depth(self.net, rate, draw)

    def step(self, images: Tensor, labels: Tensor, place: Place) -> StepResult:
        """See `Stage`."""
        with self.autocast():
            logits = self._run(images, self._skipped(place))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self._config.label_smoothing)
        self.update(loss, [self.lr(place.progress)], self._config.clip_norm)
        return StepResult(
            float(loss.detach()) * len(labels), _correct(logits, labels), len(labels), None
        )


class GateTraining(_Base):
    """Stage 2: gates alone, around one option, with room left in the softmax.

    The backbone only runs forward and stays as it is. What is learned is a soft label: `confidence`
    for the option, the rest spread over the others - evenly over cheaper ones, less for dearer
    ones, so that a drawn decision costs no more than the option itself. Or, with the label 'harm',
    how much each image minds a cheaper option in each block.
    """

    name = "gates"

    def __init__(
        self, net: DynamicNetwork, recipe: Recipe, device: torch.device, bf16: bool
    ) -> None:
        super().__init__(recipe, device, bf16)
        self.net = net
        self.epochs = recipe.gates.epochs if net.gate is not None else 0
        self._config = recipe.gates
        if net.gate is not None and not self.epochs:
            net.gate.prefer(self._label())
        gates = net.gate.parameters() if net.gate is not None else []
        self.optimisers = [torch.optim.Adam(gates, lr=self._config.lr)] if self.epochs else []
        self._path = [recipe.start_option] * len(net.blocks)

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._config.lr

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"path": self._path} if self._config.path == "own" else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self._path = list(state.get("path", self._path))

    def _label(self) -> Tensor:
        costs, start = self.net.options.costs, self.recipe.start_option
        label = torch.tensor([costs[start] / max(cost, costs[start]) for cost in costs])
        label[start] = 0
        label *= (1 - self._config.confidence) / label.sum()
        label[start] = self._config.confidence
        return label

    def step(self, images: Tensor, labels: Tensor, place: Place) -> StepResult:
        """See `Stage`."""
        options, start = self.net.options, self.recipe.start_option
        with self.autocast():
            inputs, predicted = self.net.walk(images, self._path)
            logits = self.net.gate_logits_on(inputs)
        if self._config.label == "harm":
            loss = self._harm_loss(logits, inputs, predicted.float(), place)
        else:
            target = self._label().to(logits.device).expand(logits[..., 0].numel(), len(options))
            loss = F.cross_entropy(logits.flatten(0, 1), target)
        self.update(loss, [self.lr(place.progress)])
        costs = torch.tensor(options.costs, device=logits.device)
        chosen = logits.detach().argmax(-1)
        if self._config.path == "own":
            self._follow(logits.detach(), place)
        right = float((chosen == start).float().mean(1).sum())
        return StepResult(
            float(loss.detach()) * len(labels),
            right,
            len(labels),
            float(costs[chosen].mean(1).sum()),
        )

    def _follow(self, logits: Tensor, place: Place) -> None:
        """Takes the path that images choose on average, leaned to the cost to be approached."""
        costs = self.net.options.costs
        # Dearer options than the first one are no part of the descent.
        lower = self.recipe.start_option + 1
        target = target_at(self.recipe.joint, costs[lower - 1], place.progress)
        mean = logits.mean(0).cpu()[:, :lower]
        self._path = leaned_path(mean, torch.tensor(costs[:lower]), target)

    def _harm_loss(
        self, logits: Tensor, inputs: list[Tensor], predicted: Tensor, place: Place
    ) -> Tensor:
        """Squared error of the start option's margins over the others.

        Over a cheaper option the margin is log(harm / HARMLESS): harm is the divergence between an
        image's predictions where a single block executes the one and the other, all others being as
        in the path. Over a dearer one it is what the label says.
        """
        start, path = self.recipe.start_option, self._path
        draw = generator_at(self.recipe.seed, "gates", place.epoch, place.step)
        margins = logits[:, :, start, None] - logits
        errors = []
        blocks = torch.randperm(len(self.net.blocks), generator=draw)[:HARM_BLOCKS].tolist()
        for block in blocks if start else []:
            drawn = int(torch.randint(0, start, (), generator=draw))
            cheaper = drawn if path[block] >= start else path[block]
            other = start if path[block] == cheaper else cheaper
            with self.autocast():
                changed = self.net.detour(inputs[block], block, other, path).float()
            less, more = (changed, predicted) if other == cheaper else (predicted, changed)
            wanted = harm(less, more).clamp(*HARM_RANGE) / HARMLESS
            errors.append((margins[:, block, cheaper] - wanted.log()).square().mean())
        label = self._label()
        for other in range(start + 1, len(label)):
            wanted = (label[start] / label[other]).log().to(logits.device)
            errors.append((margins[:, :, other] - wanted).square().mean())
        return torch.stack(errors).mean()


class JointTraining(_Base):
    """Stage 3: weights and gates together, towards the target cost.

    Args:
        net: The network, as the gates' stage left it.
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        teacher: The frozen backbone to distil from, if the recipe says so.
    """

    name = "joint"

    def __init__(
        self,
        net: DynamicNetwork,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        teacher: CifarResNet | None = None,
    ) -> None:
        super().__init__(recipe, device, bf16)
        self.net = net
        self.epochs = recipe.joint.epochs
        self._config = recipe.joint
        self._teacher = fused(teacher) if teacher is not None else None
        rate = recipe.joint.price_rate
        self._price = CostPrice(rate)
        self._balance: CostBalance | None = None
        if recipe.joint.objective == "balance":
            self._balance = CostBalance(rate, recipe.joint.lean_rate)
        gates = {f"gate.{name}" for name, _ in net.gate.named_parameters()} if net.gate else set()
        weights = [(name, p) for name, p in net.named_parameters() if name not in gates]
        self.optimisers = [weight_optimiser(weights, self._config.optim)]
        if net.gate is not None:
            self.optimisers.append(torch.optim.Adam(net.gate.parameters(), lr=self._config.gate_lr))

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._config.optim.lr * lr_factor(self._config.optim, progress)

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        if self._config.paths == "shared":
            return {"lean": self.net.spec.lean, "curve": self.net.spec.curve}
        if self._balance is not None:
            return {"price": self._balance.price, "lean": self._balance.lean}
        return {"price": self._price.integral}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        if self._config.paths == "shared":
            # Through JSON: pairs have become lists.
            curve = tuple((cost, lean) for cost, lean in state["curve"])
            spec = self.net.spec
            self.net.spec = spec.model_copy(update={"lean": state["lean"], "curve": curve})
        elif self._balance is not None:
            self._balance.price, self._balance.lean = state["price"], state["lean"]
            self._lean(self._balance.lean)
        else:
            self._price.integral = state["price"]

    def _lean(self, lean: float) -> None:
        """What validation between epochs sees; the run's end finds the final one."""
        self.net.spec = self.net.spec.model_copy(update={"lean": lean})

    def _target(self, progress: float) -> float:
        start = self.net.options.costs[self.recipe.start_option]
        return target_at(self._config, start, progress)

    def _penalty(self, cost: Tensor, progress: float) -> Tensor:
        target = self._target(progress)
        if self._balance is not None:
            penalty = self._balance.penalty(cost, target)
            self._lean(self._balance.lean)
            return penalty
        if self._config.objective == "paper":
            return paper_penalty(cost, target, self._config.beta, len(self.net.blocks))
        return self._price.penalty(cost, target)

    def step(self, images: Tensor, labels: Tensor, place: Place) -> StepResult:
        """See `Stage`."""
        config, options = self._config, self.net.options
        if config.paths == "shared":
            return self._shared_step(images, labels, place)
        lean = None
        if self._balance is not None:
            lean = torch.tensor(self._balance.lean, device=images.device, requires_grad=True)
        draw = generator_at(self.recipe.seed, "joint", place.epoch, place.step)
        anchors = int(config.anchor_rate * len(labels)) if self.net.gate is not None else 0
        remaining = max(0.0, 1 - place.progress / config.exploration_until)
        lowest = 1 if options.can_skip else 0
        mixing = Mixing(
            draw,
            noise=config.exploration * remaining,
            temperature=config.temperature,
            dense=config.gate_gradient == "dense",
            sample_rate=config.sample_rate if config.gate_lr else 0.0,
            anchors=anchors,
            anchor_option=int(torch.randint(lowest, len(options), (), generator=draw)),
            lean=0.0 if lean is None else lean,
        )
        with self.autocast():
            out = self.net(images, mixing=mixing)
        logits, cost = out.logits.float(), out.cost[anchors:]
        loss = self._learning_loss(logits, images, labels)
        if self.net.gate is not None:
            loss = loss + self._penalty(cost, place.progress)
        if config.diversity and out.scores is not None:
            loss = loss - config.diversity * decision_information(out.scores[anchors:])
        factor = lr_factor(config.optim, place.progress)
        rates = [config.optim.lr * factor, config.gate_lr * factor]
        cost_slope = 0.0
        if lean is not None and self.net.gate is not None and config.gate_lr:
            (slope,) = torch.autograd.grad(cost.mean(), lean, retain_graph=True)
            cost_slope = float(slope) / self._target(place.progress)
        self.update(loss, rates[: len(self.optimisers)], config.optim.clip_norm)
        if self._balance is not None and cost_slope and lean is not None and lean.grad is not None:
            self._balance.follow(float(lean.grad), cost_slope)
        routed = len(labels) - anchors
        return StepResult(
            float(loss.detach()) * routed,
            _correct(logits[anchors:], labels[anchors:]),
            routed,
            float(cost.detach().sum()),
        )

    def _learning_loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and the divergence from the teacher where there is one."""
        config = self._config
        loss = F.cross_entropy(logits, labels, label_smoothing=config.optim.label_smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad(), self.autocast():
            taught = self._teacher(images).float()
        divergence = distillation(logits, taught, config.distillation_temperature)
        return torch.lerp(loss, divergence, config.distillation)

    def _shared_step(self, images: Tensor, labels: Tensor, place: Place) -> StepResult:
        """The path of the batch's first image, which was drawn by lot, for all of its images."""
        budget = None
        if self._config.aim == "budgets" and self.net.spec.curve:
            low, high = BudgetCurve(self.net.spec.curve).range
            draw = generator_at(self.recipe.seed, "joint", place.epoch, place.step)
            budget = low * (high / low) ** float(torch.rand((), generator=draw))
        with self.autocast():
            with torch.no_grad():
                path = self.net(images[:1], budget=budget).decisions
            out = self.net(images, decisions=path.expand(len(images), -1))
        logits = out.logits.float()
        loss = self._learning_loss(logits, images, labels)
        factor = lr_factor(self._config.optim, place.progress)
        rates = [self._config.optim.lr * factor, 0.0]
        self.update(loss, rates[: len(self.optimisers)], self._config.optim.clip_norm)
        cost = float(out.cost.sum())
        return StepResult(
            float(loss.detach()) * len(labels), _correct(logits, labels), len(labels), cost
        )
