"""A network that decides, image by image and block by block, how much to compute.

Shapes: B images, L gated blocks, K options, N classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.config import ModelSpec
from fracskip.cost.budget import TAKES_NONE, BudgetCurve, checked_budgets
from fracskip.cost.cascade import Cascade
from fracskip.cost.profile import NetworkProfile
from fracskip.dynamic import estimation
from fracskip.dynamic.mixing import Mixing
from fracskip.dynamic.output import Output
from fracskip.dynamic.routing import RoutedBlock, Trial
from fracskip.dynamic.trunk import CifarTrunk, create_trunk
from fracskip.errors import ConfigError
from fracskip.gating import GateState, choose, create_gate, gumbel_like, straight_through
from fracskip.models import create_backbone
from fracskip.models.layers import copy_of, take_over
from fracskip.models.structure import Structure
from fracskip.options import Option
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d

BARRED = -1e9  # added to the logit of what a block can't do; finite, so that nothing becomes NaN


class DynamicNetwork(nn.Module):
    """A backbone whose blocks are steered by a gate.

    The first block is always executed: in full, like the stem and the classifier, or at 8 bits
    where the stream is int8. Build one with `convert`, or with `build_network`.

    Args:
        backbone: A plain network; its gated blocks are converted in place.
        spec: Options, quantisation, gate, image and classes.
        structure: The backbone's blocks, if they were looked for already.
    """

    def __init__(
        self, backbone: nn.Module, spec: ModelSpec, structure: Structure | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.notes = {}
        self.options = spec.option_set
        self.backbone = backbone
        self.trunk = create_trunk(backbone, spec, structure)
        self.stream = self.trunk.stream
        self.blocks = tuple(self.trunk.blocks)
        channels = [block.in_channels for block in self.blocks]
        # One option leaves nothing to decide: a static network.
        adaptive = len(self.options) > 1
        self.gate = create_gate(spec.gate, channels, len(self.options)) if adaptive else None
        lean_weights = torch.tensor(spec.lean_weights)
        self.register_buffer("lean_weights", lean_weights, persistent=False)
        self.register_buffer("_costs", torch.tensor(self.options.costs), persistent=False)
        barred = torch.zeros(len(self.blocks), len(self.options))
        if self.options.can_skip:
            barred[[not block.can_be_skipped for block in self.blocks], 0] = BARRED
        self.register_buffer("barred", barred, persistent=False)
        self.profile = self._priced(self.trunk.profile)

    _costs: Tensor
    barred: Tensor
    lean_weights: Tensor
    digest: str = ""  # of the checkpoint it was loaded from
    notes: dict[str, Any]

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

    def cifar_trunk(self) -> CifarTrunk:
        """The trunk, for what knows CIFAR ResNets alone.

        Raises:
            ConfigError: if it is another network's.
        """
        if not isinstance(self.trunk, CifarTrunk):
            raise ConfigError(f"{self.spec.model.name} is no CIFAR ResNet")
        return self.trunk

    def plain(self) -> nn.Module:
        """A copy of the backbone as the plain network that it still is: all in full precision."""
        twin = copy.deepcopy(self.backbone)
        for name, module in list(twin.named_modules()):
            if isinstance(module, FractionalLayer | FractionalBatchNorm2d):
                twin.set_submodule(name, take_over(module.plain(), module, module.OWN))
        return self.trunk.plain(twin)

    def summary(self) -> str:
        """Every block as a table: what it is, its cost, its options, or why it has none."""
        rows = [("block", "kind", "MACs", "options")]
        for row in self.trunk.described():
            able = self.options.labels[0 if row["skippable"] else int(self.options.can_skip) :]
            said = f"not gated: {row['reason']}" if row["reason"] else " ".join(able)
            rows.append((row["name"], row["kind"], f"{row['macs']:,}", said))
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{name:{wide[0]}}  {kind:{wide[1]}}  {macs:>{wide[2]}}  {said}"
            for name, kind, macs, said in rows
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
        image = self.spec.image
        expected = (image.channels, *image.size)
        if not images.is_floating_point():
            raise ConfigError(
                f"images of type {images.dtype} are pixels, not normalised floats: give "
                "fracskip.preprocess(images, net.spec.image), for uint8 (images, height, width, "
                "channels)"
            )
        if images.dim() != 4 or images.shape[1] != image.channels or not len(images):
            raise ConfigError(
                f"images of shape {tuple(images.shape)} do not fit: (images, {expected[0]}, height,"
                f" width) is needed, at least one image, normalised (see fracskip.preprocess)"
            )
        if not images.isfinite().all():
            raise ConfigError(
                "images hold NaN or infinite values: leave them out, or mend what makes them"
            )

    def begin(self, images: Tensor) -> Tensor:
        """What the first gated block sees of normalised images; see `check_images`."""
        self.check_images(images)
        return self.trunk.begin(images)

    def forward(
        self,
        images: Tensor,
        *,
        budget: float | Tensor | None = None,
        decisions: Tensor | None = None,
        mixing: Mixing | None = None,
    ) -> Output:
        """Classifies a batch, each image by its own path.

        Args:
            images: Normalised floats (B, C, H, W); see `fracskip.preprocess`.
            budget: Target computation share, one for all or (B,), if the network takes one (None:
                what it was trained for).
            decisions: Option indices (B, L) to execute instead of asking the gate; in one look.
            mixing: In training: how to explore, and the gates' gradient. Without it, decisions
                are the gate's first maxima and nothing but what is chosen is computed.

        Raises:
            ConfigError: if images, decisions or budget do not fit the network.
        """
        x = self.begin(images)
        count = len(images)
        if budget is not None and not (self.spec.takes_budget and self.gate is not None):
            raise ConfigError(TAKES_NONE)
        if decisions is not None:
            decisions = self._check_decisions(decisions, count).to(x.device)
        elif self.gate is None:
            decisions = torch.zeros(count, len(self.blocks), dtype=torch.int64, device=x.device)
        if decisions is not None:
            for index, block in enumerate(self.blocks):
                x = block.route(x, decisions[:, index])
            return Output(self.trunk.head(x), decisions, self._costs[decisions].mean(1))
        if self.spec.cascade and mixing is None:
            return self._look_twice(x, budget)
        return self._look(x, budget, mixing)

    def _look_twice(self, x: Tensor, budget: float | Tensor | None) -> Output:
        """A cascade from what the first gated block sees: see `fracskip.cost.Cascade`."""
        given = self.spec.target if budget is None else budget
        budgets = checked_budgets(_numbers(given), len(x))
        looks = Cascade(self.spec.cascade).looks_at(budgets)
        first = self._look(x, torch.from_numpy(looks.first).to(x.device))
        least = torch.from_numpy(looks.confidence).to(x.device)
        again = first.logits.float().softmax(1).amax(1) < least
        rows = again.nonzero().squeeze(1)
        found = first._replace(first=first.decisions, again=again)
        if not len(rows):
            return found
        second = self._look(x[rows], torch.from_numpy(looks.second).to(x.device)[rows])
        return found._replace(
            logits=first.logits.index_copy(0, rows, second.logits),
            decisions=first.decisions.index_copy(0, rows, second.decisions),
            cost=first.cost.index_add(0, rows, second.cost),
        )

    def _look(
        self, x: Tensor, budget: float | Tensor | None, mixing: Mixing | None = None
    ) -> Output:
        """One walk from what the first gated block sees, each image by its own path."""
        assert self.gate is not None
        lean = self._lean(budget, len(x))
        state = self.gate.start(len(x), self.gate_budget(budget), x)
        choices, costs, scores = [], [], []
        for index, block in enumerate(self.blocks):
            # The features are cut from the graph: the backbone learns to classify, not to steer.
            logits = self.judged(index, x.detach(), state).float()
            logits = self.leaned(logits, lean if mixing is None else mixing.lean)
            scores.append(logits)
            if mixing is None:
                choice = choose(logits)
                x = block.route(x, choice)
                costs.append(self._costs[choice])
            else:
                x, choice, cost = self._mixed(x, logits, block, mixing)
                costs.append(cost)
            choices.append(choice)
        cost = torch.stack(costs, 1).mean(1)
        found = None if mixing is None else torch.stack(scores, 1)
        return Output(self.trunk.head(x), torch.stack(choices, 1), cost, found)

    def _mixed(
        self, x: Tensor, logits: Tensor, block: RoutedBlock, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor]:
        if mixing.noise:
            logits = logits + mixing.noise * gumbel_like(logits, mixing.generator)
        choice = choose(logits)
        choice[: mixing.anchors] = mixing.anchor_option
        weights = straight_through((logits / mixing.temperature).softmax(-1), choice)
        if mixing.anchors:
            fixed = weights[: mixing.anchors].detach()
            weights = torch.cat([fixed, weights[mixing.anchors :]])
        if mixing.dense:
            x = block.mix(x, weights)
        elif not mixing.sample_rate:
            x = block.route(x, choice)
        else:
            x = block.route_with_gradient(x, weights, choice, self._trial(len(x), mixing, x.device))
        # A product and a sum, not `@`: autocast would round the costs to bfloat16.
        return x, choice, (weights * self._costs).sum(1)

    def judged(self, index: int, x: Tensor, state: GateState, barred: bool = True) -> Tensor:
        """The gate's logits (B, K) on what a block sees, (B, C, H, W).

        Args:
            index: Of the gated block.
            x: What it sees.
            state: The gate's; see `Gate.start`.
            barred: Whether what the block can't do is ruled out.
        """
        assert self.gate is not None
        logits: Tensor = self.gate(index, x.mean((2, 3)), state)
        return logits + self.barred[index] if barred else logits

    def leaned(self, logits: Tensor, lean: float | Tensor) -> Tensor:
        """A gate's logits (B, K) with a lean, one for all or (B, 1): what decides."""
        return logits + lean * self.lean_weights

    def gate_budget(self, budget: float | Tensor | None) -> float | Tensor | None:
        """What the gate itself is told."""
        if not self.spec.gate.budget_input:
            return None
        return self.spec.target if budget is None else budget

    def _lean(self, budget: float | Tensor | None, count: int) -> float | Tensor:
        """What is added to the logits times `lean_weights`: one for all, or (B, 1)."""
        spec = self.spec
        if budget is None or not spec.curve:
            return spec.lean
        leans = BudgetCurve(spec.curve).leans_at(checked_budgets(_numbers(budget), count))
        return torch.from_numpy(leans)[:, None].to(self.lean_weights.device)

    def _trial(self, count: int, mixing: Mixing, device: torch.device) -> Trial:
        lowest = 1 if self.options.can_skip else 0
        executed = len(self.options) - lowest
        tries = max(1, round(mixing.sample_rate * count))
        rows = torch.randperm(count, generator=mixing.generator)[:tries]
        option = int(torch.randint(lowest, len(self.options), (), generator=mixing.generator))
        return Trial(rows.to(device), option, executed * count / tries)

    def _check_decisions(self, decisions: Tensor, count: int) -> Tensor:
        shape = (count, len(self.blocks))
        if decisions.shape != shape or decisions.is_floating_point():
            raise ConfigError(
                f"decisions of shape {tuple(decisions.shape)} and type {decisions.dtype} do not "
                f"fit: integers of shape {shape} are needed"
            )
        if decisions.numel() and not 0 <= int(decisions.min()) <= int(decisions.max()) < len(
            self.options
        ):
            raise ConfigError(f"decisions must be option indices, 0 to {len(self.options) - 1}")
        if self.options.can_skip:
            for index, block in enumerate(self.blocks):
                if not block.can_be_skipped and bool((decisions[:, index] == 0).any()):
                    raise ConfigError(
                        f"block {block.name} has no shortcut and can't be skipped: choose a width"
                    )
        return decisions.to(torch.int64)

    @torch.no_grad()
    def walk(self, images: Tensor, path: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """What every gated block sees while all images take one path, and the logits (B, N).

        Args:
            images: Normalised floats (B, C, H, W).
            path: Index of each block's option (L); the top one everywhere if not given.
        """
        path = path or [len(self.options) - 1] * len(self.blocks)
        x, inputs = self.begin(images), []
        for block, option in zip(self.blocks, path, strict=True):
            inputs.append(x)
            x = block.execute(x, self.options[option])
        return inputs, self.trunk.head(x)

    @torch.no_grad()
    def detour(self, x: Tensor, block: int, other: int, path: Sequence[int]) -> Tensor:
        """The logits (B, N) of a walk whose images execute another option in one block.

        Args:
            x: What the block sees, from `walk`.
            block: Index of the block.
            other: Index of the option it executes.
            path: As in `walk`.
        """
        x = self.blocks[block].execute(x, self.options[other])
        for later, option in zip(self.blocks[block + 1 :], path[block + 1 :], strict=True):
            x = later.execute(x, self.options[option])
        return self.trunk.head(x)

    def gate_logits(self, images: Tensor, budget: float | Tensor | None = None) -> Tensor:
        """The gates' logits (B, L, K) while every block executes the top option, without lean."""
        return self.gate_logits_on(self.walk(images)[0], budget)

    def gate_logits_on(
        self,
        inputs: Sequence[Tensor],
        budget: float | Tensor | None = None,
        barred: bool = True,
    ) -> Tensor:
        """The gates' logits (B, L, K) on given inputs of the gated blocks, without lean.

        Args:
            inputs: From `walk`, (B, C, H, W) each; they get no gradient.
            budget: As in `forward`.
            barred: As in `judged`.
        """
        assert self.gate is not None, "a static network has no gate"
        state = self.gate.start(len(inputs[0]), self.gate_budget(budget), inputs[0])
        logits = [
            self.judged(index, x.detach(), state, barred).float() for index, x in enumerate(inputs)
        ]
        return torch.stack(logits, 1)

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Initialises every quantised option; see `estimation.calibrate`."""
        estimation.calibrate(self, batches)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`named_parameters` without the gates'."""
        return (pair for pair in self.named_parameters() if not pair[0].startswith("gate."))

    def reestimate(
        self,
        batches: Sequence[Tensor],
        fewest: int = 64,
        decisions: Sequence[Tensor] | None = None,
    ) -> None:
        """Estimates BatchNorm statistics along the paths taken; see `estimation.reestimate`."""
        estimation.reestimate(self, batches, fewest, decisions)


def _numbers(budget: Any) -> Any:
    return budget.cpu().numpy() if isinstance(budget, Tensor) else budget


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
    structure = getattr(like.trunk, "structure", None) if like is not None else None
    known = structure is not None and not structure.graph.replaced
    return DynamicNetwork(backbone, spec, structure if known else None)
