"""The third stage, for gates that give the sensitivity to each option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fracskip.config import Recipe
from fracskip.dynamic import DynamicNetwork
from fracskip.operating import offsets
from fracskip.options import SENSITIVITY_SCALE
from fracskip.training.batches import cutout
from fracskip.training.objective import multiplier_at, sensitivity, spread, target_at
from fracskip.training.randomness import generator_at
from fracskip.training.stages import Measure, StageBase, StepIndex, StepResult

BLOCKS, OPTIONS = 3, 2  # blocks tried in a step, and cheaper options in each
PROBED = 16  # images by which the allocation at a budget is found
LEAST, MOST = 1e-6, 1.0  # nats; outside, more or less makes no difference


def tweedie(expected: Tensor, seen: Tensor) -> Tensor:
    """Deviance of non-negative, heavy-tailed values, mean over them; least where the mean is hit.

    Of Tweedie's family with power 1.5, up to a constant: a value's spread is taken to grow with
    its expectation to the power 0.75. A squared error would see nothing but the largest.

    Args:
        expected: Positive, any shape.
        seen: Of the same shape, at least 0.
    """
    root = expected.sqrt()
    return (2 * seen / root + 2 * root).mean()


class SensitivityTraining(StageBase):
    """Stage 3: each gate learns to expect what cheaper options do to an image's prediction.

    Sensitivity is the divergence between the predictions where a single block executes its dearest
    option and a cheaper one, all other blocks having the allocation that the gates themselves
    choose for a random image, at the multiplier at which the mean image costs what the budget says;
    gates that take one are given it, and it is drawn anew each step. The backbone only runs
    forward.

    Args:
        net: The network; its gates are trained.
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
    """

    name = "gates"
    measure: Measure = "agreement"

    def __init__(
        self, net: DynamicNetwork, recipe: Recipe, device: torch.device, bf16: bool
    ) -> None:
        super().__init__(recipe, device, bf16)
        assert net.gate is not None
        self.net = net
        self.epochs = recipe.gates.epochs
        self._config = recipe.gates
        self.optimisers = [torch.optim.Adam(net.gate.parameters(), lr=self._config.lr)]
        self._allocation = [recipe.start_option] * len(net.blocks)

    def lr(self, progress: float) -> float:
        """See `Stage`: on a straight line to zero, for labels are noisy."""
        return self._config.lr * (1 - progress)

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"allocation": self._allocation}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self._allocation = list(state["allocation"])

    def _budget(self, at: StepIndex, draw: torch.Generator) -> float:
        joint = self.recipe.joint
        if len(joint.budgets) > 1:
            low, high = min(joint.budgets), max(joint.budgets)
            return spread(low, high, float(torch.rand((), generator=draw)))
        start = self.net.options.costs[self.recipe.start_option]
        return target_at(joint, start, at.progress)

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """See `Stage`; what counts as right is a decision like those of the allocation's image."""
        draw = generator_at(self.recipe.seed, "gates", at.epoch, at.step)
        budget = self._budget(at, draw)
        images = cutout(images, self._config.cutout, draw)
        costs, weights = torch.tensor(self.net.options.costs), self.net.cost_weights.cpu()
        with self.autocast():
            probed, _ = self.net.execute_allocation(images[:PROBED], self._allocation)
            with torch.no_grad():
                found = (self.net.gate_scores_on(probed, budget) + self.net.mask).cpu()
            multiplier = multiplier_at(found.mean(0), costs, weights, budget)
            added = offsets(multiplier, weights)
            allocation = (found[0] + added).argmin(-1)
            self._allocation = allocation.tolist()
            inputs, predicted = self.net.execute_allocation(images, self._allocation)
            scores = self.net.gate_scores_on(inputs, budget)
            loss = self._deviance(scores / SENSITIVITY_SCALE, inputs, predicted, draw)
        self.update(loss, [self.lr(at.progress)], clip_norm=1.0)
        chosen = ((scores.detach() + self.net.mask).cpu() + added).argmin(-1)
        return StepResult(
            float(loss.detach()) * len(labels),
            float((chosen == allocation).float().mean(1).sum()),
            len(labels),
            float(costs[chosen].mean(1).sum()),
        )

    def _deviance(
        self, expected: Tensor, inputs: list[Tensor], predicted: Tensor, draw: torch.Generator
    ) -> Tensor:
        """Of what the gates expect (B, L, K) from what happens, in a few blocks and options."""
        dearest = self.net.options.top
        terms = []
        for block in torch.randperm(len(inputs), generator=draw)[:BLOCKS].tolist():
            lowest = 0 if self.net.blocks[block].can_be_skipped else int(self.net.options.can_skip)
            tried = (lowest + torch.randperm(dearest - lowest, generator=draw)[:OPTIONS]).tolist()
            seen = {self._allocation[block]: predicted}
            for option in (dearest, *tried):
                if option not in seen:
                    seen[option] = self.net.execute_from(
                        inputs[block], block, option, self._allocation
                    )
            done = torch.full_like(predicted[:, 0], LEAST, dtype=torch.float32)
            terms.append(tweedie(expected[:, block, dearest], done))
            for option in tried:
                done = sensitivity(seen[option].float(), seen[dearest].float())
                done = done.clamp(LEAST, MOST)
                terms.append(tweedie(expected[:, block, option], done))
        return torch.stack(terms).mean()
