"""Gates: what decides, block by block, how each image is treated.

A gate sees the global average of its block's input (and, where it is made so, a target budget)
and gives one score per option, the less the better (`fracskip.operating.decision`). The protocol
is one `start` per batch, then one `forward` per gated block, in order; the state that runs between
them is the gate's own.

Shapes: B batch, C channels of a block's input, K options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fracskip.config import GateConfig
from fracskip.errors import ConfigError
from fracskip.options import SENSITIVITY_SCALE

CERTAIN = 1e4  # a logit that no multiplier and no noise outweighs
LEAST_DEVIATION = 1e-6  # what does not vary more than so much is the same in all images
# Log sensitivities of fresh gates: 0.025 nats, and next to none for the dearest option.
USUAL_SENSITIVITY, NO_SENSITIVITY = -6.0, -16.0


@dataclass
class GateState:
    """What a gate carries from block to block for one batch.

    Attributes:
        hidden: LSTM output (B, width), for recurrent gates.
        cell: LSTM cell (B, width), for recurrent gates.
        budget: Encoded budget (B, width), for gates that take one.
    """

    hidden: Tensor | None = None
    cell: Tensor | None = None
    budget: Tensor | None = None


class Gate(nn.Module):
    """Base of all gates: pooled features and the optional budget.

    Args:
        channels: Channels of each gated block's input, in order.
        options: K.
        width: Features per block.
        budget_input: Whether `start` takes a budget.
    """

    def __init__(
        self, channels: Sequence[int], options: int, width: int, budget_input: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.output: Literal["logit", "sensitivity"] = "logit"
        self.embed = nn.ModuleList([nn.Linear(count, width) for count in channels])
        self.budget_embed = nn.Linear(1, width) if budget_input else None

    def start(self, images: int, budget: float | Tensor | None, like: Tensor) -> GateState:
        """Begins a batch.

        Args:
            images: B.
            budget: Target computation share in (0, 1], one for all or (B,); None for gates that
                take none.
            like: A tensor whose device and dtype the state takes.

        Raises:
            ConfigError: if a budget is missing, superfluous or out of range.
        """
        if self.budget_embed is None:
            if budget is not None:
                raise ConfigError(
                    "this network was trained for one budget and takes none: leave budget out"
                )
            return GateState()
        if budget is None:
            raise ConfigError("this network needs a budget: a computation share in (0, 1]")
        value = torch.as_tensor(budget, dtype=torch.float32, device=like.device)
        if value.shape not in ((), (1,), (images,)):
            raise ConfigError(
                f"budget of shape {tuple(value.shape)} does not fit: give one share, or one for "
                f"each of the {images} images"
            )
        value = value.expand(images)
        if not bool(((value > 0) & (value <= 1)).all()):
            raise ConfigError(f"budget {budget} is out of range: give a share in (0, 1]")
        # Costs span three decades; the logarithm spreads them evenly over about -1..1.
        scaled = value.log10()[:, None] / 1.5 + 1
        return GateState(budget=self.budget_embed(scaled.to(like.dtype)))

    def features(self, block: int, pooled: Tensor, state: GateState) -> Tensor:
        """Embeds a block's pooled input (B, C) -> (B, width)."""
        out: Tensor = self.embed[block](pooled)
        return out if state.budget is None else out + state.budget

    @torch.no_grad()
    def standardise(self, pooled: Sequence[Tensor]) -> None:
        """Rescales a fresh gate so that head outputs differ between images: mean 0, deviation 1.

        Embeddings come to act on inputs of mean 0 and deviation 1, then the output layer is scaled
        and centred. Where nothing differs, as with a single image, they are centred alone.

        Args:
            pooled: For each gated block, what it sees of a set of images, (images, C).
        """
        for layer, seen in zip(self.embed, pooled, strict=True):
            assert isinstance(layer, nn.Linear)
            mean, deviation = seen.mean(0), seen.std(0, unbiased=False)
            widest = float(deviation.max())
            if widest > LEAST_DEVIATION:
                # A channel that is all but constant says nothing; it must not become noise.
                layer.weight.div_(deviation.clamp_min(0.05 * widest + LEAST_DEVIATION))
            layer.bias.sub_(layer.weight @ mean)
        state = self.start(len(pooled[0]), None if self.budget_embed is None else 1.0, pooled[0])
        given = [self.head_output(block, seen, state) for block, seen in enumerate(pooled)]
        outputs = torch.stack(given)
        mean = outputs.mean(1)
        deviation = (outputs - mean[:, None]).square().mean().sqrt()
        if not float(deviation) > LEAST_DEVIATION:
            deviation = torch.ones_like(deviation)
        wanted = torch.zeros_like(mean)
        if self.output == "sensitivity":
            wanted[:, :-1], wanted[:, -1] = USUAL_SENSITIVITY, NO_SENSITIVITY
        self._rescale(1 / float(deviation), mean / deviation - wanted)

    @torch.no_grad()
    def round_embeddings(self) -> None:
        """Rounds the embeddings' weights to bfloat16: the native engine then reads half as much.

        In wide networks reading them is most of what a gate takes. Done before costs are brought
        to what is asked for, so that all that computes with these weights agrees.
        """
        for layer in self.embed:
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(layer.weight.bfloat16())

    def _rescale(self, factor: float, centre: Tensor) -> None:
        """Multiplies the output layer, then takes the centre (blocks, K) from its bias."""
        raise NotImplementedError

    def prefer(self, shares: Tensor) -> None:
        """Adds to the output biases what gives these shares where logits are otherwise zero.

        Args:
            shares: A probability per option (K,).
        """
        raise NotImplementedError

    def fix(self, allocation: Sequence[int]) -> None:
        """Gives every image the same decisions, whatever it shows and at any multiplier.

        Args:
            allocation: An option's index for each gated block.

        Raises:
            ConfigError: if the gate has no bias of each block's own.
        """
        raise NotImplementedError

    def shrink(self, shrinkage: float, added: Tensor) -> None:
        """Scales head outputs, and adds something, the same for all images.

        Args:
            shrinkage: What is taken off the scale, in [0, 1].
            added: (L, K); see `head_output`.

        Raises:
            ConfigError: if the gate has no bias of each block's own.
        """
        raise NotImplementedError

    def forward(self, block: int, pooled: Tensor, state: GateState) -> Tensor:
        """Decides for one gated block.

        Args:
            block: Index among the gated blocks.
            pooled: Mean over height and width of the block's input, (B, C).
            state: From `start`; updated in place.

        Returns:
            Scores (B, K), before offsets.
        """
        return self.scores_of(self.head_output(block, pooled, state))

    def scores_of(self, outputs: Tensor) -> Tensor:
        """Scores from head outputs, (..., K)."""
        if self.output == "logit":
            return -outputs
        # In float32: under autocast sensitivities would be rounded to three digits, and options
        # of nearly equal worth could not be told apart.
        return SENSITIVITY_SCALE * outputs.float().clamp_max(0).exp()

    def outputs_of(self, scores: Tensor) -> Tensor:
        """Head outputs from scores before offsets, (..., K); of sensitivities, at most 0."""
        if self.output == "logit":
            return -scores
        return (scores / SENSITIVITY_SCALE).log()

    def head_output(self, block: int, pooled: Tensor, state: GateState) -> Tensor:
        """What the last layer gives for each option, (B, K): logits or log sensitivities."""
        raise NotImplementedError

    def macs(self, block: int) -> int:
        """MACs of one decision for one image; the pooling counts as one MAC per channel."""
        raise NotImplementedError

    def _certain(self, allocation: Sequence[int], options: int) -> Tensor:
        """Head outputs (L, K) by which an allocation is chosen."""
        sign = 1 if self.output == "logit" else -1
        chosen = nn.functional.one_hot(torch.tensor(allocation), options)
        return sign * CERTAIN * chosen.float()

    def _embed_macs(self, block: int) -> int:
        embed = self.embed[block]
        assert isinstance(embed, nn.Linear)
        return embed.in_features * (embed.out_features + 1)


class RecurrentGate(Gate):
    """The paper's gate: per-block features, one LSTM shared by all blocks, one output layer.

    DFS, section 3.3; Wang et al., "SkipNet", ECCV 2018. The features are those of a 1x1
    convolution on the pooled input, which is a linear layer. With `block_bias` (ours) each block
    adds a bias of its own to the logits, (blocks, K).
    """

    def __init__(
        self,
        channels: Sequence[int],
        options: int,
        width: int,
        budget_input: bool = False,
        block_bias: bool = False,
    ) -> None:
        super().__init__(channels, options, width, budget_input)
        self.lstm = nn.LSTMCell(width, width)
        self.out = nn.Linear(width, options)
        own = nn.Parameter(torch.zeros(len(channels), options)) if block_bias else None
        self.register_parameter("block_bias", own)

    block_bias: nn.Parameter | None

    def head_output(self, block: int, pooled: Tensor, state: GateState) -> Tensor:
        """See `Gate.head_output`."""
        features = self.features(block, pooled, state)
        if state.hidden is None or state.cell is None:
            state.hidden = state.cell = torch.zeros_like(features)
        state.hidden, state.cell = self.lstm(features, (state.hidden, state.cell))
        logits: Tensor = self.out(state.hidden)
        return logits if self.block_bias is None else logits + self.block_bias[block]

    @torch.no_grad()
    def prefer(self, shares: Tensor) -> None:
        """See `Gate.prefer`."""
        self.out.bias.add_(shares.log())

    @torch.no_grad()
    def fix(self, allocation: Sequence[int]) -> None:
        """See `Gate.fix`."""
        if self.block_bias is None:
            raise ConfigError(
                "a recurrent gate decides the same for all images only with a bias of each block's "
                "own: set gate.block_bias to true"
            )
        self.out.weight.zero_()
        self.out.bias.zero_()
        self.block_bias.copy_(self._certain(allocation, self.out.out_features))

    @torch.no_grad()
    def shrink(self, shrinkage: float, added: Tensor) -> None:
        """See `Gate.shrink`."""
        if self.block_bias is None:
            raise ConfigError(
                "a recurrent gate is shrunk only with a bias of each block's own: set "
                "gate.block_bias to true, or gates.shrinkage and gates.block_shrinkage to []"
            )
        self.out.weight.mul_(1 - shrinkage)
        self.out.bias.mul_(1 - shrinkage)
        self.block_bias.mul_(1 - shrinkage).add_(added)

    def _rescale(self, factor: float, centre: Tensor) -> None:
        self.out.weight.mul_(factor)
        self.out.bias.mul_(factor)
        if self.block_bias is None:
            self.out.bias.sub_(centre.mean(0))
        else:
            self.block_bias.sub_(centre)

    def macs(self, block: int) -> int:
        """See `Gate.macs`: features, the LSTM's two 4·width matrices and its 3 products, output."""
        lstm = 2 * 4 * self.width**2 + 3 * self.width
        return self._embed_macs(block) + lstm + self.width * self.out.out_features


class FeedForwardGate(Gate):
    """A gate per block with nothing between them: linear, ReLU, linear."""

    def __init__(
        self, channels: Sequence[int], options: int, width: int, budget_input: bool = False
    ) -> None:
        super().__init__(channels, options, width, budget_input)
        self.out = nn.ModuleList([nn.Linear(width, options) for _ in channels])
        self._options = options

    def head_output(self, block: int, pooled: Tensor, state: GateState) -> Tensor:
        """See `Gate.head_output`."""
        logits: Tensor = self.out[block](self.features(block, pooled, state).relu())
        return logits

    @torch.no_grad()
    def prefer(self, shares: Tensor) -> None:
        """See `Gate.prefer`."""
        for layer in self.out:
            assert isinstance(layer, nn.Linear)
            layer.bias.add_(shares.log())

    @torch.no_grad()
    def fix(self, allocation: Sequence[int]) -> None:
        """See `Gate.fix`."""
        for layer, outputs in zip(self.out, self._certain(allocation, self._options), strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
            layer.bias.copy_(outputs)

    @torch.no_grad()
    def shrink(self, shrinkage: float, added: Tensor) -> None:
        """See `Gate.shrink`."""
        for layer, of_block in zip(self.out, added, strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.mul_(1 - shrinkage)
            layer.bias.mul_(1 - shrinkage).add_(of_block)

    def _rescale(self, factor: float, centre: Tensor) -> None:
        for layer, middle in zip(self.out, centre, strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.mul_(factor)
            layer.bias.mul_(factor).sub_(middle)

    def macs(self, block: int) -> int:
        """See `Gate.macs`."""
        return self._embed_macs(block) + self.width * self._options


def create_gate(config: GateConfig, channels: Sequence[int], options: int) -> Gate:
    """Makes the gate that a recipe names, for the given blocks and number of options."""
    gate: Gate
    if config.kind == "recurrent":
        gate = RecurrentGate(
            channels, options, config.width, config.budget_input, config.block_bias
        )
    else:
        gate = FeedForwardGate(channels, options, config.width, config.budget_input)
    gate.output = config.output
    for layer in gate.embed:
        # Inputs are pooled ReLU outputs of order 0.1 to 1: start with features of order one.
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)
    return gate
