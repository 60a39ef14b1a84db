"""A bundle's plan: what the network is, as typed, frozen values (docs/bundle.md).

Validation follows one image through the shapes, so a plan that is accepted can be executed, and
`tensor_table` says exactly which tensors it needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fracskip.config import Fraction, ImageConfig, Probability, check_ascending, check_cascade
from fracskip.cost.budget import BudgetCurve
from fracskip.cost.cascade import Cascade
from fracskip.cost.profile import NetworkProfile
from fracskip.options import FULL_BITS, Option, OptionSet
from fracskip.quant.affine import IntegerGrid

SCHEMA: Literal["fracskip.bundle"] = "fracskip.bundle"
VERSION: Literal[1] = 1
WIDEST_INTEGERS = 8  # wider options execute in floating point
HIGHEST_LEVEL = (1 << WIDEST_INTEGERS) - 1
MAX_BLOCKS = 4096
MAX_ELEMENTS = 2**31
MAX_ACTIVATION_BYTES = 2**30

Size = tuple[int, int]
Positive = Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]


class _Plan(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True, strict=True
    )


class Window(_Plan):
    """What slides over an image: (height, width) each."""

    kernel: tuple[Positive, Positive]
    stride: tuple[Positive, Positive]
    padding: tuple[NotNegative, NotNegative]

    def out_size(self, size: Size) -> Size:
        """Height and width of what comes out.

        Raises:
            ValueError: if the padded image is smaller than the kernel.
        """
        height, width = (
            (length + 2 * padding - kernel) // stride + 1
            for length, kernel, stride, padding in zip(
                size, self.kernel, self.stride, self.padding, strict=True
            )
        )
        if height < 1 or width < 1:
            raise ValueError(f"a kernel of {self.kernel} does not fit an image of {size}")
        return height, width


class ConvGeometry(Window):
    """A convolution's channels and window."""

    in_channels: Positive = Field(alias="in")
    out_channels: Positive = Field(alias="out")

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, kh, kw, I)."""
        return (self.out_channels, *self.kernel, self.in_channels)


class StemConv(ConvGeometry):
    """A convolution of the stem; a ReLU follows."""

    op: Literal["conv"] = "conv"


class StemPool(Window):
    """A max pool of the stem; its padding never wins."""

    op: Literal["maxpool"] = "maxpool"

    @model_validator(mode="after")
    def _every_window_sees_the_image(self) -> StemPool:
        if any(2 * pad > edge for pad, edge in zip(self.padding, self.kernel, strict=True)):
            raise ValueError("a max pool's padding is at most half of its kernel")
        return self


StemOp = Annotated[StemConv | StemPool, Field(discriminator="op")]


def _canonical(labels: tuple[str, ...]) -> OptionSet:
    options = OptionSet.of(labels)
    if options.labels != labels:
        raise ValueError(f"options {list(labels)} are spelled {list(options.labels)}")
    return options


class BlockPlan(_Plan):
    """One residual block.

    Attributes:
        name: Its name in the network.
        gated: Whether an option is chosen for it.
        options: The network's, for a gated block; else the one that it executes.
        branch: The residual branch's convolutions, with ReLUs in between.
        shortcut: The projection; None is the identity.
    """

    name: Annotated[str, Field(min_length=1)]
    gated: bool
    options: tuple[str, ...]
    branch: Annotated[tuple[ConvGeometry, ...], Field(min_length=1)]
    shortcut: ConvGeometry | None

    @property
    def executed(self) -> tuple[Option, ...]:
        """Its options without skip."""
        return tuple(option for option in map(Option.parse, self.options) if not option.is_skip)


class NetworkPlan(_Plan):
    """Stem, blocks in order, head."""

    stem: Annotated[tuple[StemOp, ...], Field(min_length=1)]
    blocks: Annotated[tuple[BlockPlan, ...], Field(min_length=1, max_length=MAX_BLOCKS)]
    classes: Positive


class GatePlan(_Plan):
    """Who decides: see `fracskip.config.GateConfig`.

    Attributes:
        curve: (cost, lean) pairs, ascending in both. With output 'logit' leans are relative to the
            one that the last bias holds already.
        cascade: What meets a budget where images may be looked at twice: see
            `fracskip.config.ModelSpec`.
        output: What the last layer says of an option.
        lean: Where no budget is asked for, with output 'harm'.
    """

    kind: Literal["recurrent", "feedforward"]
    width: Positive
    budget_input: bool
    curve: tuple[tuple[Fraction, float], ...] = ()
    cascade: tuple[tuple[Fraction, Fraction, Fraction, Probability], ...] = ()
    output: Literal["logit", "harm"] = "logit"
    lean: float = 0.0

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what older readers do not know, where it says nothing."""
        tree: dict[str, Any] = serialise(self)
        silent = {key for key in ("curve", "cascade") if not getattr(self, key)}
        silent |= {"output", "lean"} if self.output == "logit" else set()
        return {key: tree[key] for key in tree if key not in silent}

    @model_validator(mode="after")
    def _the_curve_ascends(self) -> GatePlan:
        check_ascending(self.curve)
        if self.lean and self.output == "logit":
            raise ValueError("a lean is for output 'harm': logits have theirs in the last bias")
        return self


class Plan(_Plan):
    """The whole plan.

    Attributes:
        name: The backbone's name.
        source: Digest of the checkpoint it was made from.
        data_name: What it was trained on.
        class_names: One a class.
        image: Size, channels and normalisation of its input.
        options: Labels of what its gates choose from.
        stream: What runs between blocks: floats, or levels of one step a stage.
        target: The computation share it was trained for, if any.
        cost: MACs, so that decisions can be priced.
        network: Shapes.
        gate: Who decides; None for a static network (one option).
    """

    schema_name: Literal["fracskip.bundle"] = Field(SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    name: Annotated[str, Field(min_length=1)]
    source: str
    data_name: str
    class_names: tuple[str, ...]
    image: ImageConfig
    options: tuple[str, ...]
    stream: Literal["float", "int8"]
    target: Fraction | None
    cost: NetworkProfile
    network: NetworkPlan
    gate: GatePlan | None

    @property
    def lean_weights(self) -> tuple[float, ...]:
        """What a lean is multiplied with before it is added to each option's logit."""
        return self.option_set.lean_weights("logit" if self.gate is None else self.gate.output)

    @cached_property
    def option_set(self) -> OptionSet:
        """The gated blocks' options."""
        return OptionSet.of(self.options)

    @property
    def integer_stream(self) -> bool:
        """Whether levels run between blocks."""
        return self.stream == "int8"

    @cached_property
    def gated(self) -> tuple[BlockPlan, ...]:
        """The gated blocks in order: the columns of a decision matrix."""
        return tuple(block for block in self.network.blocks if block.gated)

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """The stage of each block's output; stage 0 is the stem's."""
        projects = (int(block.shortcut is not None) for block in self.network.blocks)
        return tuple(itertools.accumulate(projects))

    @property
    def takes_budget(self) -> bool:
        """Whether a caller may name the cost."""
        return self.gate is not None and (self.gate.budget_input or bool(self.gate.curve))

    @cached_property
    def curve(self) -> BudgetCurve | None:
        """What leans cost, where budgets become leans."""
        return None if self.gate is None or not self.gate.curve else BudgetCurve(self.gate.curve)

    @cached_property
    def cascade(self) -> Cascade | None:
        """Which looks meet a budget, where images may be looked at twice."""
        rows = () if self.gate is None else self.gate.cascade
        return Cascade(rows) if rows else None

    @property
    def budgets(self) -> tuple[float, float] | None:
        """The smallest and the largest budget that a caller may name; None if it takes none."""
        reached = self.cascade or self.curve
        if reached is not None:
            return reached.range
        return (0.0, 1.0) if self.takes_budget else None

    @model_validator(mode="after")
    def _it_is_a_network(self) -> Plan:
        if len(self.class_names) != self.network.classes:
            raise ValueError(
                f"{self.network.classes} classes need as many names, not {len(self.class_names)}"
            )
        if (len(_canonical(self.options)) == 1) != (self.gate is None):
            raise ValueError("a network has a gate if and only if it has several options")
        if self.gate is not None:
            check_cascade(self.gate.cascade, self.gate.curve, self.target)
        blocks = self.network.blocks
        for block in blocks:
            if block.gated and block.options != self.options:
                raise ValueError(f"gated block {block.name} must have the network's options")
            if not block.gated and len(_canonical(block.options)) != 1:
                raise ValueError(f"ungated block {block.name} must have one option")
        if len({block.name for block in blocks}) != len(blocks):
            raise ValueError("two blocks have one name")
        priced = tuple((block.name, block.gated) for block in self.cost.blocks)
        if priced != tuple((block.name, block.gated) for block in blocks):
            raise ValueError("cost does not list the network's blocks")
        if any(macs < 0 for macs in _macs(self.cost)):
            raise ValueError("MACs are never negative")
        if any(not 0 < block.fixed_bits <= FULL_BITS for block in self.cost.blocks):
            raise ValueError(f"what is fixed has 1 to {FULL_BITS} bits")
        _walk(self)
        return self


def _macs(cost: NetworkProfile) -> Iterator[int]:
    yield from (cost.stem_macs, cost.head_macs)
    for block in cost.blocks:
        yield from (block.branch_macs, block.shortcut_macs, block.gate_macs)


def _walk(plan: Plan) -> None:
    """Follows one image's shape through the network.

    Raises:
        ValueError: where a shape does not fit the next, or is too large.
    """
    channels: int = plan.image.channels
    size = plan.image.size

    def convolve(conv: ConvGeometry, channels: int, size: Size, what: str) -> tuple[int, Size]:
        if conv.in_channels != channels:
            raise ValueError(f"{what} takes {conv.in_channels} channels, it gets {channels}")
        return bounded(conv.out_channels, conv.out_size(size), what)

    def bounded(channels: int, size: Size, what: str) -> tuple[int, Size]:
        if 4 * channels * size[0] * size[1] > MAX_ACTIVATION_BYTES:
            raise ValueError(f"{what} has activations of more than 1 GiB")
        return channels, size

    bounded(channels, size, "the image")
    if not isinstance(plan.network.stem[0], StemConv):
        raise ValueError("the stem must begin with a convolution")
    for position, op in enumerate(plan.network.stem):
        if isinstance(op, StemConv):
            channels, size = convolve(op, channels, size, f"stem {position}")
        else:
            size = op.out_size(size)
    for block in plan.network.blocks:
        entry = channels, size
        for conv in block.branch:
            channels, size = convolve(conv, channels, size, f"block {block.name}")
        shortcut = entry
        if block.shortcut is not None:
            shortcut = convolve(block.shortcut, *entry, f"the shortcut of {block.name}")
        if shortcut != (channels, size):
            raise ValueError(
                f"block {block.name}: the branch ends with {channels} channels of {size}, the "
                f"shortcut with {shortcut[0]} of {shortcut[1]}"
            )


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        shape: Its shape.
        bits: Width of its integers; 0 is float32.
        positive: Whether its values must be above zero.
        optional: Whether it may be absent.
    """

    shape: tuple[int, ...]
    bits: int = 0
    positive: bool = False
    optional: bool = False

    @property
    def dtype(self) -> str:
        """As safetensors names it."""
        return "I8" if self.bits else "F32"

    @property
    def largest(self) -> int:
        """The largest integer of the width's grid."""
        return IntegerGrid(self.bits, signed=True).bounds[1]


def tensor_table(plan: Plan) -> dict[str, TensorSpec]:
    """The tensors that a plan needs, by name."""
    table: dict[str, TensorSpec] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        table[f"{name}.weight"] = TensorSpec((outputs, inputs))
        table[f"{name}.bias"] = TensorSpec((outputs,))

    def convolution(name: str, conv: ConvGeometry, bits: int) -> None:
        table[f"{name}.weight"] = TensorSpec(conv.weight_shape, bits)
        table[f"{name}.bias"] = TensorSpec((conv.out_channels,))
        if bits:
            table[f"{name}.scale"] = TensorSpec((conv.out_channels,))

    for position, op in enumerate(plan.network.stem):
        if isinstance(op, StemConv):
            convolution(f"stem.{position}", op, 0)
    if plan.integer_stream:
        table["stream.steps"] = TensorSpec((plan.stages[-1] + 1,), positive=True)
    for index, block in enumerate(plan.network.blocks):
        for option in block.executed:
            name = f"blocks.{index}.{option.label}"
            bits = option.bits if option.bits <= WIDEST_INTEGERS else 0
            for position, conv in enumerate(block.branch):
                convolution(f"{name}.{position}", conv, bits)
            if bits:
                levels_fit = plan.integer_stream and bits == WIDEST_INTEGERS
                table[f"{name}.input"] = TensorSpec((1,), positive=True, optional=levels_fit)
        if block.shortcut is not None:
            bits = WIDEST_INTEGERS if plan.integer_stream else 0
            convolution(f"blocks.{index}.shortcut", block.shortcut, bits)
    if plan.gate is not None:
        _add_gate(plan, plan.gate, linear, table)
    linear("head", plan.network.classes, plan.network.blocks[-1].branch[-1].out_channels)
    return table


def _add_gate(plan: Plan, gate: GatePlan, linear: Any, table: dict[str, TensorSpec]) -> None:
    width, options = gate.width, len(plan.options)
    for index, block in enumerate(plan.gated):
        linear(f"gate.embed.{index}", width, block.branch[0].in_channels)
        if gate.kind == "feedforward":
            linear(f"gate.out.{index}", options, width)
    if gate.budget_input:
        table["gate.budget.weight"] = table["gate.budget.bias"] = TensorSpec((width,))
    if gate.kind == "recurrent":
        for name in ("weight_ih", "weight_hh"):
            table[f"gate.lstm.{name}"] = TensorSpec((4 * width, width))
        table["gate.lstm.bias"] = TensorSpec((4 * width,))
        table["gate.block_bias"] = TensorSpec((len(plan.gated), options), optional=True)
        linear("gate.out", options, width)
