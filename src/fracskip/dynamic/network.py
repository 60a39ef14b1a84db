"""A network that decides, image by image and block by block, how much to compute.

Shapes: B images, L gated blocks, K options, N classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fracskip.config import ModelSpec
from fracskip.cost.profile import NetworkProfile
from fracskip.dynamic import estimation
from fracskip.dynamic.exploration import Exploration
from fracskip.dynamic.inputs import check_images, checked_decisions
from fracskip.dynamic.sections import Sections
from fracskip.errors import ConfigError
from fracskip.gating import GateState, create_gate, first_minimum
from fracskip.models import create_backbone
from fracskip.models.layers import copy_of, take_over
from fracskip.models.structure import Structure
from fracskip.operating import (
    TAKES_NO_BUDGET,
    Execution,
    OperatingPoints,
    Operation,
    Prediction,
    Setting,
    cost_weights,
    masks,
    offsets,
)
from fracskip.options import Option
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d

MASKED = 1e9  # added to the score of what a block can't do; finite, so that nothing becomes NaN


class DynamicNetwork(nn.Module):
    """A backbone whose blocks are steered by a gate.

    The first block is always executed: in full, like the stem and the classifier, or at 8 bits
    where the stream is int8. Build one with `convert`, or with `build_network`.

    Args:
        backbone: A plain network; its gated blocks are converted in place.
        spec: Options, quantisation, gate, image and classes.
        structure: The backbone's blocks, if they were looked for already.

    Attributes:
        spec: What it is; never changed.
        operating_points: How it is operated; assigned as a whole.
    """

    def __init__(
        self, backbone: nn.Module, spec: ModelSpec, structure: Structure | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.notes = {}
        self.options = spec.option_set
        self.backbone = backbone
        self.sections = Sections(backbone, spec, structure)
        self.stream = self.sections.stream
        self.blocks = self.sections.blocks
        channels = [block.in_channels for block in self.blocks]
        # One option leaves nothing to decide: a static network.
        adaptive = len(self.options) > 1
        self.gate = create_gate(spec.gate, channels, len(self.options)) if adaptive else None
        weights = cost_weights(self.options, spec.gate.output, len(self.blocks))
        self.register_buffer("cost_weights", torch.from_numpy(weights), persistent=False)
        self.register_buffer("_costs", torch.tensor(self.options.costs), persistent=False)
        skippable = [block.can_be_skipped for block in self.blocks]
        mask = MASKED * torch.from_numpy(masks(self.options, skippable)).float()
        self.register_buffer("mask", mask, persistent=False)
        self.profile = self._priced(self.sections.profile)
        self._points = OperatingPoints()

    _costs: Tensor
    mask: Tensor  # (L, K): `MASKED` or 0
    cost_weights: Tensor  # (L, K)
    digest: str = ""  # over the tensors of the checkpoint it was loaded from
    notes: dict[str, Any]

    @property
    def operating_points(self) -> OperatingPoints:
        """How it is operated."""
        return self._points

    @operating_points.setter
    def operating_points(self, points: OperatingPoints) -> None:
        self._points = self.checked_points(points)

    def checked_points(self, points: OperatingPoints) -> OperatingPoints:
        """Operating points, if this network has them.

        Raises:
            ConfigError: if they are for gates, and it has none.
        """
        if self.gate is None and points.range is not None:
            raise ConfigError(
                "a network with one option has nothing to decide: leave multiplier_curve and "
                "cascade empty"
            )
        return points

    @property
    def budgets(self) -> tuple[float, float] | None:
        """The smallest and the largest budget that a caller may name; None if it takes none."""
        if self.gate is None:
            return None
        return self.operating_points.budgets(self.spec.gate.budget_input)

    def _priced(self, plain: NetworkProfile) -> NetworkProfile:
        """The plain network's profile with this one's gates."""
        if self.gate is None:
            return plain
        index, counted = 0, []
        for block in plain.blocks:
            if block.gated:
                block, index = replace(block, gate_macs=self.gate.macs(index)), index + 1
            counted.append(block)
        return replace(plain, blocks=tuple(counted))

    def plain(self) -> nn.Module:
        """A copy of the backbone as the plain network that it still is: all in full precision."""
        twin = copy.deepcopy(self.backbone)
        for name, module in list(twin.named_modules()):
            if isinstance(module, FractionalLayer | FractionalBatchNorm2d):
                twin.set_submodule(name, take_over(module.plain(), module, module.OWN))
        return self.sections.plain(twin)

    def summary(self) -> str:
        """Every block as a table: what it is, its cost, its options, or why it has none."""
        rows = [("block", "kind", "MACs", "options")]
        for row in self.sections.described():
            able = self.options.labels[0 if row["skippable"] else int(self.options.can_skip) :]
            options = f"not gated: {row['reason']}" if row["reason"] else " ".join(able)
            rows.append((row["name"], row["kind"], f"{row['macs']:,}", options))
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{name:{wide[0]}}  {kind:{wide[1]}}  {macs:>{wide[2]}}  {options}"
            for name, kind, macs, options in rows
        )

    def train(self, mode: bool = True) -> DynamicNetwork:
        """As in torch, but norms' running statistics stand still: none is ever in training mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        return self

    def forced(self, option: Option | int | str, images: int) -> Tensor:
        """Decisions (B, L) that give every block the same option.

        Raises:
            ConfigError: if the option is not in the set.
        """
        return torch.full((images, len(self.blocks)), self.options.index(option))

    def check_images(self, images: Tensor) -> None:
        """Raises a ConfigError if normalised images (B, C, H, W) do not fit the network."""
        check_images(images, self.spec.image)

    def begin(self, images: Tensor) -> Tensor:
        """What the first gated block sees of normalised images; see `check_images`."""
        self.check_images(images)
        return self.sections.begin(images)

    def forward(
        self,
        images: Tensor,
        *,
        budget: float | Tensor | None = None,
        decisions: Tensor | None = None,
        exploration: Exploration | None = None,
        points: OperatingPoints | None = None,
    ) -> Prediction[Tensor]:
        """Classifies a batch, each image by its own allocation.

        Args:
            images: Normalised floats (B, C, H, W); see `fracskip.preprocess`.
            budget: Target computation share, one for all or (B,), if the network takes one (None:
                what it was trained for).
            decisions: Option indices (B, L) to execute instead of asking the gate, by one member.
            exploration: In training: how to explore, and the gates' gradient. Without it, decisions
                are the first minima and nothing but what is chosen is computed.
            points: Operating points in place of the network's own.

        Raises:
            ConfigError: if images, decisions or budget do not fit the network.
        """
        x = self.begin(images)
        count = len(images)
        points = self.operating_points if points is None else self.checked_points(points)
        takes_budget = self.spec.gate.budget_input
        if budget is not None and (self.gate is None or points.budgets(takes_budget) is None):
            raise ConfigError(TAKES_NO_BUDGET)
        if decisions is not None:
            decisions = checked_decisions(decisions, count, self.blocks, self.options).to(x.device)
        elif self.gate is None:
            decisions = torch.zeros(count, len(self.blocks), dtype=torch.int64, device=x.device)
        if decisions is not None:
            for index, block in enumerate(self.blocks):
                x = block.route(x, decisions[:, index])
            # Without blocks everything is always executed.
            costs = self._costs[decisions] if self.blocks else torch.ones_like(x[:, :1].flatten(1))
            return self._answer(x, decisions, costs.mean(1))
        if exploration is not None:
            setting = points.alone(None, count, takes_budget)
            return self._member(x, setting, exploration.multiplier, exploration)
        return self._cascade(x, points.at(_numbers(budget), count, takes_budget))

    def _answer(
        self, x: Tensor, decisions: Tensor, cost: Tensor, scores: Tensor | None = None
    ) -> Prediction[Tensor]:
        """Of one member that executed its blocks."""
        rows = torch.arange(len(x), device=x.device)
        return Prediction(self.sections.head(x), cost, (Execution(rows, decisions),), scores)

    def _cascade(self, x: Tensor, operation: Operation) -> Prediction[Tensor]:
        """The members in order, from what the first gated block sees; or the only one."""
        first, *others = operation.members
        found = self._member(x, first, torch.from_numpy(first.multiplier).to(x.device))
        for other, thresholds in zip(others, operation.thresholds, strict=True):
            threshold = torch.from_numpy(thresholds).to(x.device)
            unsure = found.logits.float().softmax(1).amax(1) < threshold
            rows = unsure.nonzero().squeeze(1)
            if not len(rows):
                empty = Execution(rows, found.executions[0].decisions[rows])
                return found._replace(executions=(*found.executions, empty))
            setting = other.of(rows.cpu().numpy())
            multiplier = torch.from_numpy(setting.multiplier).to(x.device)
            member = self._member(x[rows], setting, multiplier)
            executed = Execution(rows, member.executions[0].decisions)
            found = found._replace(
                logits=found.logits.index_copy(0, rows, member.logits),
                cost=found.cost.index_add(0, rows, member.cost),
                executions=(*found.executions, executed),
            )
        return found

    def _member(
        self,
        x: Tensor,
        setting: Setting,
        multiplier: float | Tensor,
        exploration: Exploration | None = None,
    ) -> Prediction[Tensor]:
        """One pass from what the first gated block sees, each image by its own allocation."""
        assert self.gate is not None
        state = self.gate.start(len(x), _tensor(setting.budget), x)
        choices, costs, scores = [], [], []
        for index, block in enumerate(self.blocks):
            # The features are cut from the graph: the backbone learns to classify, not to steer.
            score = self.scores(index, x.detach(), state) + self.mask[index]
            score = score + offsets(multiplier, self.cost_weights[index])
            scores.append(score)
            if exploration is None:
                choice = first_minimum(score)
                x = block.route(x, choice)
                costs.append(self._costs[choice])
            else:
                x, choice, cost = exploration.execute(block, x, score, self.options)
                costs.append(cost)
            choices.append(choice)
        cost = torch.stack(costs, 1).mean(1)
        found = None if exploration is None else torch.stack(scores, 1)
        return self._answer(x, torch.stack(choices, 1), cost, found)

    def scores(self, index: int, x: Tensor, state: GateState) -> Tensor:
        """The gate's scores (B, K), float32, before offsets, on what a block sees, (B, C, H, W).

        Args:
            index: Of the gated block.
            x: What it sees.
            state: The gate's; see `Gate.start`.
        """
        assert self.gate is not None
        scores: Tensor = self.gate(index, x.mean((2, 3)), state)
        return scores.float()

    def gate_budget(self, budget: float | Tensor | None) -> float | Tensor | None:
        """What the gate itself takes as an input."""
        if not self.spec.gate.budget_input:
            return None
        return self.operating_points.target if budget is None else budget

    @torch.no_grad()
    def execute_allocation(
        self, images: Tensor, allocation: Sequence[int] = ()
    ) -> tuple[list[Tensor], Tensor]:
        """What every gated block sees in one allocation for all images, and the logits (B, N).

        Args:
            images: Normalised floats (B, C, H, W).
            allocation: Index of each block's option (L); the top one everywhere if not given.
        """
        allocation = allocation or [len(self.options) - 1] * len(self.blocks)
        x, inputs = self.begin(images), []
        for block, option in zip(self.blocks, allocation, strict=True):
            inputs.append(x)
            x = block.execute(x, self.options[option])
        return inputs, self.sections.head(x)

    @torch.no_grad()
    def execute_from(self, x: Tensor, block: int, other: int, allocation: Sequence[int]) -> Tensor:
        """The logits (B, N) of a pass whose images execute another option in one block.

        Args:
            x: What the block sees, from `execute_allocation`.
            block: Index of the block.
            other: Index of the option it executes.
            allocation: As in `execute_allocation`.
        """
        x = self.blocks[block].execute(x, self.options[other])
        for later, option in zip(self.blocks[block + 1 :], allocation[block + 1 :], strict=True):
            x = later.execute(x, self.options[option])
        return self.sections.head(x)

    def gate_scores(self, images: Tensor, budget: float | Tensor | None = None) -> Tensor:
        """The gates' scores (B, L, K), masks included, while all execute the top option."""
        return self.gate_scores_on(self.execute_allocation(images)[0], budget) + self.mask

    def gate_scores_on(
        self, inputs: Sequence[Tensor], budget: float | Tensor | None = None
    ) -> Tensor:
        """The gates' scores (B, L, K) before offsets on given inputs of the gated blocks.

        Args:
            inputs: From `execute_allocation`, (B, C, H, W) each; they get no gradient.
            budget: As in `forward`.
        """
        assert self.gate is not None, "a static network has no gate"
        state = self.gate.start(len(inputs[0]), self.gate_budget(budget), inputs[0])
        scores = [self.scores(index, x.detach(), state) for index, x in enumerate(inputs)]
        return torch.stack(scores, 1)

    def calibrate(self, batches: Sequence[Tensor]) -> dict[str, str]:
        """Initialises every quantised option; see `estimation.calibrate`."""
        return estimation.calibrate(self, batches)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`named_parameters` without the gates'."""
        return (pair for pair in self.named_parameters() if not pair[0].startswith("gate."))

    def reestimate(
        self,
        batches: Sequence[Tensor],
        fewest: int = 64,
        decisions: Sequence[Tensor] | None = None,
    ) -> None:
        """Estimates BatchNorm statistics by what is decided; see `estimation.reestimate`."""
        estimation.reestimate(self, batches, fewest, decisions)


def _numbers(budget: Any) -> Any:
    return budget.cpu().numpy() if isinstance(budget, Tensor) else budget


def _tensor(values: NDArray[Any] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def build_network(
    spec: ModelSpec, model: nn.Module | None = None, like: DynamicNetwork | None = None
) -> DynamicNetwork:
    """Makes a dynamic network with fresh weights.

    Args:
        spec: What it is.
        model: Its backbone, if its name alone can't make it; it is left as it is.
        like: A network of the same spec, made by name too, whose graph is taken where it can be.

    Raises:
        ConfigError: if the model's name is unknown, or the model has other blocks.
    """
    if model is not None:
        return DynamicNetwork(copy_of(model).eval(), spec)
    backbone = create_backbone(spec.model.name, spec.image.channels, len(spec.class_names))
    structure = like.sections.structure if like is not None else None
    known = structure is not None and not structure.graph.replaced
    return DynamicNetwork(backbone, spec, structure if known else None)
