"""What a stage of training is, what stages share, and the first: a plain backbone.

The others are in `supernet`, `gates` and `joint`. A stage knows its network, its optimisers and one
step. The loop knows the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import BackboneStage, ImageConfig, JointStage, Recipe, SupernetStage
from fracskip.dynamic import DynamicNetwork
from fracskip.models.fusion import fused
from fracskip.models.skippable import SkippableNetwork
from fracskip.training.depth import draw_by_depth, draw_by_sensitivity, skippable_network
from fracskip.training.objective import distillation
from fracskip.training.randomness import generator_at
from fracskip.training.schedule import lr_factor, weight_optimiser

Measure = Literal["accuracy", "agreement"]


@dataclass(frozen=True)
class StepIndex:
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
        correct: Images classified right; in the gates' stage decisions, in images' worth, that are
            those it trains towards. See `Stage.measure`.
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
    measure: Measure  # what a step's `correct` is a count for
    epochs: int
    optimisers: list[torch.optim.Optimizer]
    class_weights: Tensor | None

    @property
    def net(self) -> nn.Module:
        """What it trains."""
        ...

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
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


class StageBase:
    """What the stages share.

    Args:
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        teacher: A trained network to distil from, if the stage does.
        image: The teacher's images.

    Attributes:
        class_weights: What classes weigh in the cross-entropy (N,); None: all the same.
    """

    measure: Measure = "accuracy"
    optimisers: list[torch.optim.Optimizer]

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        teacher: nn.Module | None = None,
        image: ImageConfig | None = None,
    ) -> None:
        self.recipe = recipe
        self.class_weights: Tensor | None = None
        self._teacher = None if teacher is None else fused(teacher, image or recipe.data.image)
        self._device, self._bf16 = device, bf16

    def autocast(self) -> torch.autocast:
        """Where to compute in bfloat16, if the run does."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def learning_loss(
        self,
        logits: Tensor,
        images: Tensor,
        labels: Tensor,
        config: BackboneStage | SupernetStage | JointStage,
    ) -> Tensor:
        """Cross-entropy, and the divergence from the teacher where there is one.

        Args:
            logits: The network's (B, N).
            images: (B, C, H, W), for the teacher.
            labels: (B,).
            config: How the two are mixed.
        """
        loss = F.cross_entropy(
            logits, labels, self.class_weights, label_smoothing=config.optim.label_smoothing
        )
        if self._teacher is None:
            return loss
        with torch.no_grad(), self.autocast():
            taught = self._teacher(images).float()
        divergence = distillation(logits, taught, config.distillation_temperature)
        return torch.lerp(loss, divergence, config.distillation)

    def learn(
        self,
        logits: Tensor,
        images: Tensor,
        labels: Tensor,
        config: BackboneStage | SupernetStage | JointStage,
        rates: list[float],
        cost: Tensor | None = None,
    ) -> StepResult:
        """A whole step of the weights on logits (B, N), in which all images count alike.

        Args:
            logits: The network's (B, N).
            images: (B, C, H, W).
            labels: (B,).
            config: Of the stage.
            rates: A learning rate for each optimiser.
            cost: Relative cost of each image (B,), where the stage has one.
        """
        logits = logits.float()
        loss = self.learning_loss(logits, images, labels, config)
        self.update(loss, rates, config.optim.clip_norm)
        return StepResult(
            float(loss.detach()) * len(labels),
            count_correct(logits, labels),
            len(labels),
            None if cost is None else float(cost.sum()),
        )

    def update(self, loss: Tensor, rates: list[float], clip_norm: float = 0.0) -> None:
        """One step of every optimiser, at its rate; the first one's gradient is clipped."""
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
        """See `Stage`."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        assert not state


def count_correct(logits: Tensor, labels: Tensor) -> float:
    """How many of the logits (B, N) name their label (B,)."""
    return float((logits.argmax(1) == labels).sum())


class BackboneTraining(StageBase):
    """Stage 1: plain supervised training of the plain network, or of parts of it.

    Args:
        net: The network. With stochastic depth, layers that are not plain are replaced by plain
            ones (`models.tracing.trace`).
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        order: For elastic depth: its blocks, those of least sensitivity first.
        teacher: The network to distil from, if the recipe says so.

    Raises:
        ConfigError: if there is stochastic depth and no block that can be left out.
    """

    name = "backbone"

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        order: Sequence[int] = (),
        teacher: nn.Module | None = None,
    ) -> None:
        config = recipe.backbone
        super().__init__(recipe, device, bf16, teacher if config.distillation else None)
        self.net = net
        self.epochs = config.epochs
        self._config = config.optim
        self._order = list(order)
        self._blocks: SkippableNetwork | None = None
        if config.epochs and config.stochastic_depth:
            self._blocks = skippable_network(net, recipe)
        self._run = torch.compile(net) if recipe.runtime.compile else net
        self.optimisers = [weight_optimiser(net.named_parameters(), self._config)]

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._config.lr * lr_factor(self._config, progress)

    def state(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"skip_order": self._order} if self._order else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self._order = list(state.get("skip_order", ()))

    def _skipped(self, blocks: SkippableNetwork, at: StepIndex) -> frozenset[int]:
        """The blocks that this step leaves out."""
        rate = self.recipe.backbone.stochastic_depth
        draw = generator_at(self.recipe.seed, "depth", at.epoch, at.step)
        if self._order:
            return draw_by_sensitivity(self._order, rate, draw)
        return draw_by_depth(blocks, rate, draw)

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """See `Stage`."""
        blocks = self._blocks
        with self.autocast():
            if blocks is None:
                logits = self._run(images)
            else:
                logits = blocks(images, self._skipped(blocks, at))
        rates = [self.lr(at.progress)]
        return self.learn(logits, images, labels, self.recipe.backbone, rates)


class AllocationTraining(StageBase):
    """What stages share that train a dynamic network's weights, one allocation for all of a batch.

    Nothing is grouped: a step costs what its blocks do.

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
        taught = teacher if config.distillation else None
        super().__init__(recipe, device, bf16, taught, net.spec.image)
        self.net = net
        self.epochs = config.epochs
        self._weights = config
        self.optimisers = [weight_optimiser(net.named_weights(), config.optim)]

    def lr(self, progress: float) -> float:
        """See `Stage`."""
        return self._weights.optim.lr * lr_factor(self._weights.optim, progress)

    def train_allocation(
        self, images: Tensor, labels: Tensor, allocation: Sequence[int], at: StepIndex
    ) -> StepResult:
        """One step of the weights; other optimisers stand still.

        Args:
            images: (B, C, H, W).
            labels: (B,).
            allocation: Index of each gated block's option (L).
            at: Where the step stands.
        """
        with self.autocast():
            out = self.net(images, decisions=torch.tensor([*allocation]).expand(len(images), -1))
        rates = [self.lr(at.progress), *[0.0] * (len(self.optimisers) - 1)]
        return self.learn(out.logits, images, labels, self._weights, rates, out.cost)
