"""Training a dynamic network's weights on one path for all images of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fracskip.config import JointStage, Recipe, SupernetStage
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.path import PathForward
from fracskip.dynamic.trunk import CifarTrunk
from fracskip.training.captured import CapturedStep
from fracskip.training.schedule import lr_factor, weight_optimiser
from fracskip.training.stages import Place, StageBase, StepResult


class PathTraining(StageBase):
    """What stages share that train weights: nothing is grouped, a step costs what its blocks do.

    Args:
        net: The network.
        recipe: The run.
        config: Of the stage.
        device: Where it trains.
        bf16: Whether in bfloat16.
        teacher: The network to distil from, if the recipe says so.
    """

    def __init__(
        self,
        net: DynamicNetwork,
        recipe: Recipe,
        config: SupernetStage | JointStage,
        device: torch.device,
        bf16: bool,
        teacher: nn.Module | None,
    ) -> None:
        super().__init__(recipe, device, bf16, teacher)
        self.net = net
        # Other networks' steps are not recorded.
        self.captures = self.captures and isinstance(net.trunk, CifarTrunk)
        self.epochs = config.epochs
        self._weights = config
        self.optimisers = [weight_optimiser(net.named_weights(), config.optim)]
        self._captured: CapturedStep | None = None

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._weights.optim.lr * lr_factor(self._weights.optim, progress)

    def train_path(
        self, images: Tensor, labels: Tensor, path: Sequence[int], place: Place
    ) -> StepResult:
        """One step of the weights; other optimisers stand still.

        Args:
            images: (B, C, H, W).
            labels: (B,).
            path: Index of each gated block's option (L).
            place: Where the step stands.
        """
        rate = self.lr(place.progress)
        if self.captures:
            if self._captured is None:
                self._captured = self.capture()
            loss, right = self._captured(images, labels, path, rate)
            costs, count = self.net.options.costs, len(labels)
            cost = sum(costs[option] for option in path) / len(path)
            return StepResult(loss * count, right, count, cost * count)
        with self.autocast():
            out = self.net(images, decisions=torch.tensor([*path]).expand(len(images), -1))
        rates = [rate, *[0.0] * (len(self.optimisers) - 1)]
        return self.learn(out.logits, images, labels, self._weights, rates, out.cost)

    def capture(self) -> CapturedStep:
        """Steps that can be recorded; BatchNorm statistics are those of now."""
        run = PathForward(self.net)

        def forward(values: Sequence[Tensor], images: Tensor, path: Tensor) -> Tensor:
            with self.autocast():
                return run(values, images, path)

        def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            return self.learning_loss(logits, images, labels, self._weights)

        options = self.net.options
        return CapturedStep(
            run.pieces,
            forward,
            loss,
            self.optimisers[0],
            options=len(options),
            blocks=len(self.net.blocks),
            can_skip=options.can_skip,
            clip_norm=self._weights.optim.clip_norm,
        )
