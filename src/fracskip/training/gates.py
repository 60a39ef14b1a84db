"""The third stage: gates alone, around one option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.config import Recipe
from fracskip.dynamic import DynamicNetwork
from fracskip.training.objective import allocation_at, sensitivity, target_at
from fracskip.training.randomness import generator_at
from fracskip.training.stages import Measure, StageBase, StepIndex, StepResult

NEGLIGIBLE = 1e-4  # nats of sensitivity at which a decision is even
RANGE = (1e-6, 10.0)  # nats; outside it, more or less makes no difference
BLOCKS = 2  # tried in a step


class GateTraining(StageBase):
    """Stage 3: gates alone, around one option, with room left in the softmax.

    The backbone only runs forward and stays as it is. What is learned is a soft label: `confidence`
    for the option, the rest spread over the others - evenly over cheaper ones, less for dearer
    ones, so that a drawn decision costs no more than the option itself. Or, with the label
    'sensitivity', how sensitive each image's prediction is to a cheaper option in each block.
    """

    name = "gates"
    measure: Measure = "agreement"

    def __init__(
        self, net: DynamicNetwork, recipe: Recipe, device: torch.device, bf16: bool
    ) -> None:
        super().__init__(recipe, device, bf16)
        self.net = net
        self.epochs = recipe.gates.epochs if net.gate is not None else 0
        self._config = recipe.gates
        if net.gate is not None and not self.epochs and not recipe.start:
            net.gate.prefer(self._label())
        gates = net.gate.parameters() if net.gate is not None else []
        self.optimisers = [torch.optim.Adam(gates, lr=self._config.lr)] if self.epochs else []
        self._allocation = [recipe.start_option] * len(net.blocks)

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._config.lr

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"allocation": self._allocation} if self._config.allocation == "chosen" else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self._allocation = list(state.get("allocation", self._allocation))

    def _label(self) -> Tensor:
        costs, start = self.net.options.costs, self.recipe.start_option
        label = torch.tensor([costs[start] / max(cost, costs[start]) for cost in costs])
        label[start] = 0
        label *= (1 - self._config.confidence) / label.sum()
        label[start] = self._config.confidence
        return label

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """See `Stage`."""
        options, start = self.net.options, self.recipe.start_option
        with self.autocast():
            inputs, predicted = self.net.execute_allocation(images, self._allocation)
            scores = self.net.gate_scores_on(inputs) + self.net.mask
        logits = -scores
        if self._config.label == "sensitivity":
            loss = self._sensitivity_loss(logits, inputs, predicted.float(), at)
        else:
            target = self._label().to(logits.device).expand(logits[..., 0].numel(), len(options))
            loss = F.cross_entropy(logits.flatten(0, 1), target)
        self.update(loss, [self.lr(at.progress)])
        costs = torch.tensor(options.costs, device=logits.device)
        chosen = scores.detach().argmin(-1)
        if self._config.allocation == "chosen":
            self._follow(scores.detach(), at)
        right = float((chosen == start).float().mean(1).sum())
        return StepResult(
            float(loss.detach()) * len(labels),
            right,
            len(labels),
            float(costs[chosen].mean(1).sum()),
        )

    def _follow(self, scores: Tensor, at: StepIndex) -> None:
        """Takes the allocation that images choose on average, at the cost to be approached."""
        costs = self.net.options.costs
        # Dearer options than the first one are no part of the descent.
        lower = self.recipe.start_option + 1
        target = target_at(self.recipe.joint, costs[lower - 1], at.progress)
        mean, weights = (each.cpu()[:, :lower] for each in (scores.mean(0), self.net.cost_weights))
        self._allocation = allocation_at(mean, torch.tensor(costs[:lower]), weights, target)

    def _sensitivity_loss(
        self, logits: Tensor, inputs: list[Tensor], predicted: Tensor, at: StepIndex
    ) -> Tensor:
        """Squared error of the start option's margins over the others.

        Over a cheaper option the margin is log(sensitivity / NEGLIGIBLE): the divergence between an
        image's predictions where a single block executes the one and the other, all others being as
        in the allocation. Over a dearer one it is what the label says.
        """
        start, allocation = self.recipe.start_option, self._allocation
        draw = generator_at(self.recipe.seed, "gates", at.epoch, at.step)
        margins = logits[:, :, start, None] - logits
        errors = []
        blocks = torch.randperm(len(self.net.blocks), generator=draw)[:BLOCKS].tolist()
        for block in blocks if start else []:
            drawn = int(torch.randint(0, start, (), generator=draw))
            cheaper = drawn if allocation[block] >= start else allocation[block]
            other = start if allocation[block] == cheaper else cheaper
            with self.autocast():
                changed = self.net.execute_from(inputs[block], block, other, allocation).float()
            less, more = (changed, predicted) if other == cheaper else (predicted, changed)
            wanted = sensitivity(less, more).clamp(*RANGE) / NEGLIGIBLE
            errors.append((margins[:, block, cheaper] - wanted.log()).square().mean())
        label = self._label()
        for other in range(start + 1, len(label)):
            wanted = (label[start] / label[other]).log().to(logits.device)
            errors.append((margins[:, :, other] - wanted).square().mean())
        return torch.stack(errors).mean()
