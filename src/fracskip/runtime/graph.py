"""The plan of any other network's bundle: version 2 (docs/bundle.md).

A network is a chain of parts between which one value flows; a part executes programs, and a
program is a list of operations on values (height, width, channels).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field, model_validator

from fracskip.options import Option
from fracskip.runtime.plan import (
    MAX_BLOCKS,
    WIDEST_INTEGERS,
    NotNegative,
    Plan,
    Positive,
    Size,
    Strict,
    TensorSpec,
    Window,
    bounded,
    canonical,
    gate_tensors,
)

MAX_OPS = 4096
MAX_EXECUTIONS = 2**18  # operations times options
# Clamping to levels does what these would.
CLAMPED = ("none", "relu", "relu6")

Shape = tuple[int, Size]  # channels, (height, width)
Act = Literal["none", "relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "gelu"]
One = tuple[NotNegative]
Two = tuple[NotNegative, NotNegative]


class _Op(Strict):
    """Attributes: inputs: Values that it takes, by number."""

    def out_shape(self, *taken: Shape) -> Shape:
        """The shape of what it gives.

        Raises:
            ValueError: if it can't take that.
        """
        return taken[0]

    def tensors(self, bits: int) -> dict[str, TensorSpec]:
        """What it needs at a width; 0 is float32."""
        return {}


class ConvOp(_Op, Window):
    """A convolution and an activation; BatchNorm is folded into it."""

    op: Literal["conv"] = "conv"
    inputs: One = Field(alias="in")
    channels: tuple[Positive, Positive]
    dilation: tuple[Positive, Positive]
    groups: Positive
    act: Act

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> ConvOp:
        if any(count % self.groups for count in self.channels):
            raise ValueError(f"{self.groups} groups do not divide channels {self.channels}")
        return self

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, kh, kw, I / groups)."""
        taken, given = self.channels
        return (given, *self.kernel, taken // self.groups)

    def out_shape(self, *taken: Shape) -> Shape:
        """See `_Op.out_shape`."""
        channels, size = taken[0]
        if channels != self.channels[0]:
            raise ValueError(f"a convolution takes {self.channels[0]} channels, it gets {channels}")
        high, wide = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        reach = Window.model_construct(
            kernel=(high, wide), stride=self.stride, padding=self.padding
        )
        return self.channels[1], reach.out_size(size)

    def tensors(self, bits: int) -> dict[str, TensorSpec]:
        """See `_Op.tensors`."""
        out = (self.channels[1],)
        table = {"weight": TensorSpec(self.weight_shape, bits), "bias": TensorSpec(out)}
        if bits:
            table["scale"] = TensorSpec(out)
            table["input"] = TensorSpec((1,), positive=True)
            table["zero"] = TensorSpec((1,), optional=True, levels=bits)
        return table


class PoolOp(_Op, Window):
    """The largest or the mean of a window; padding never wins."""

    op: Literal["pool"] = "pool"
    inputs: One = Field(alias="in")
    kind: Literal["max", "mean"]
    count_padding: bool

    @model_validator(mode="after")
    def _every_window_sees_the_image(self) -> PoolOp:
        if any(2 * pad > edge for pad, edge in zip(self.padding, self.kernel, strict=True)):
            raise ValueError("a pool's padding is at most half of its kernel")
        if self.kind == "max" and self.count_padding:
            raise ValueError("a max pool counts no padding")
        return self

    def out_shape(self, *taken: Shape) -> Shape:
        """See `_Op.out_shape`."""
        channels, size = taken[0]
        return channels, self.out_size(size)


class MeanOp(_Op):
    """The mean over height and width."""

    op: Literal["mean"] = "mean"
    inputs: One = Field(alias="in")

    def out_shape(self, *taken: Shape) -> Shape:
        """See `_Op.out_shape`."""
        return taken[0][0], (1, 1)


class ActOp(_Op):
    """An activation by itself."""

    op: Literal["act"] = "act"
    inputs: One = Field(alias="in")
    act: Act

    @model_validator(mode="after")
    def _it_does_something(self) -> ActOp:
        if self.act == "none":
            raise ValueError("an act of its own is not 'none'")
        return self


class BinaryOp(_Op):
    """A sum or a product; the second value may be one a channel."""

    op: Literal["add", "mul"]
    inputs: Two = Field(alias="in")

    def out_shape(self, *taken: Shape) -> Shape:
        """See `_Op.out_shape`."""
        first, second = taken
        if second not in (first, (first[0], (1, 1))):
            raise ValueError(f"{self.op} can't take values of {first} and {second}")
        return first


class AffineOp(_Op):
    """A gain and an offset a channel."""

    op: Literal["affine"] = "affine"
    inputs: One = Field(alias="in")
    channels: Positive

    def out_shape(self, *taken: Shape) -> Shape:
        """See `_Op.out_shape`."""
        if taken[0][0] != self.channels:
            raise ValueError(f"{self.op} takes {self.channels} channels, it gets {taken[0][0]}")
        return taken[0]

    def tensors(self, bits: int) -> dict[str, TensorSpec]:
        """See `_Op.tensors`."""
        return {"gain": TensorSpec((self.channels,)), "bias": TensorSpec((self.channels,))}


class NormOp(AffineOp):
    """LayerNorm over the channels of each pixel."""

    op: Literal["norm"] = "norm"  # type: ignore[assignment]
    eps: Annotated[float, Field(gt=0)]


Op = Annotated[
    ConvOp | PoolOp | MeanOp | ActOp | BinaryOp | AffineOp | NormOp, Field(discriminator="op")
]
Program = Annotated[tuple[Op, ...], Field(max_length=MAX_OPS)]


class FixedPart(Strict):
    """What is always executed, in float32."""

    name: str
    gated: Literal[False]
    ops: Program


class GatedPart(Strict):
    """A block that a gate decides for.

    Attributes:
        name: Its name in the network.
        can_skip: Whether it has a shortcut.
        hands_on: Whether a skipped one gives what it takes.
        branch: The residual branch, at every option.
        shortcut: What is added to it.
        after: What is done to the sum.
    """

    name: Annotated[str, Field(min_length=1)]
    gated: Literal[True]
    can_skip: bool
    hands_on: bool
    branch: Annotated[Program, Field(min_length=1)]
    shortcut: Program
    after: Program

    @model_validator(mode="after")
    def _what_is_skipped_has_a_shortcut(self) -> GatedPart:
        if not self.can_skip and (self.hands_on or self.shortcut or self.after):
            raise ValueError(f"{self.name} can't be skipped, so its branch is all there is")
        if self.hands_on and self.shortcut:
            raise ValueError(f"{self.name} has a projection and can't hand on what it takes")
        if any(not isinstance(op, ActOp) for op in self.after):
            raise ValueError(f"{self.name}: nothing but activations follows a sum")
        return self


Part = Annotated[FixedPart | GatedPart, Field(discriminator="gated")]


class GraphNetwork(Strict):
    """Parts in order, from the image to the logits."""

    classes: Positive
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_BLOCKS)]


def follow(program: Sequence[_Op], shape: Shape, what: str) -> Shape:
    """The shape of what a program gives.

    Args:
        program: Its operations.
        shape: Of what it takes.
        what: The part, for errors.

    Raises:
        ValueError: if a value is not there, is not used, does not fit or is too large.
    """
    shapes = [shape]
    used: set[int] = set()
    for position, op in enumerate(program):
        where = f"{what}, operation {position}"
        inputs: tuple[int, ...] = op.inputs  # type: ignore[attr-defined]
        if max(inputs) > position:
            raise ValueError(f"{where} takes value {max(inputs)}, which nothing gave yet")
        used.update(inputs)
        try:
            found = op.out_shape(*(shapes[index] for index in inputs))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        shapes.append(bounded(*found, where))
    if unused := set(range(len(program))) - used:
        raise ValueError(f"{what}: nothing uses value {min(unused)}")
    return shapes[-1]


def feeds_levels(branch: Sequence[_Op], position: int) -> ConvOp | None:
    """The convolution that may give an integer convolution of a branch its levels, if there is one.

    Args:
        branch: The branch's operations.
        position: Of the integer convolution.
    """
    op = branch[position]
    if not isinstance(op, ConvOp) or not op.inputs[0]:
        return None
    source = branch[op.inputs[0] - 1]
    takers = [other for other in branch if op.inputs[0] in other.inputs]  # type: ignore[attr-defined]
    if isinstance(source, ConvOp) and source.act in CLAMPED and len(takers) == 1:
        return source
    return None


def left_to_clamps(
    name: str, program: Sequence[_Op], bits: int, tensors: Container[str]
) -> set[int]:
    """The operations of a program whose activation is not executed: a clamp to levels does it.

    Args:
        name: Of the program's tensors.
        program: Its operations.
        bits: Width of its integers; 0 is float32.
        tensors: Names of the bundle's.
    """
    return {
        op.inputs[0] - 1  # type: ignore[attr-defined]
        for position, op in enumerate(program if bits else ())
        if feeds_levels(program, position) is not None and f"{name}.{position}.input" not in tensors
    }


class GraphPlan(Plan):
    """The whole plan."""

    version: Literal[2] = 2
    stream: Literal["float"] = "float"
    network: GraphNetwork

    @cached_property
    def gated(self) -> tuple[GatedPart, ...]:
        """The gated parts in order."""
        return tuple(part for part in self.network.parts if isinstance(part, GatedPart))

    @property
    def gated_names(self) -> tuple[str, ...]:
        """See `Plan.gated_names`."""
        return tuple(part.name for part in self.gated)

    @property
    def unskippable(self) -> tuple[bool, ...]:
        """See `Plan.unskippable`."""
        can_skip = self.option_set.can_skip
        return tuple(can_skip and not part.can_skip for part in self.gated)

    @cached_property
    def entries(self) -> tuple[Shape, ...]:
        """What each part takes.

        Raises:
            ValueError: where a shape does not fit the next.
        """
        shape = bounded(self.image.channels, self.image.size, "the image")
        found = []
        for index, part in enumerate(self.network.parts):
            what = f"part {index} ({part.name})"
            found.append(shape)
            if isinstance(part, FixedPart):
                shape = follow(part.ops, shape, what)
                continue
            end = follow(part.branch, shape, what)
            if part.can_skip:
                short = follow(part.shortcut, shape, f"the shortcut of {what}")
                if short != end:
                    raise ValueError(f"{what}: the branch gives {end}, the shortcut {short}")
                end = follow(part.after, end, what)
            shape = end
        if shape != (self.network.classes, (1, 1)):
            raise ValueError(f"the last part gives {shape}, not {self.network.classes} logits")
        return tuple(found)

    @model_validator(mode="after")
    def _it_is_a_network(self) -> GraphPlan:
        parts, names = self.network.parts, self.gated_names
        if len(set(names)) != len(names):
            raise ValueError("two gated parts have one name")
        if names != tuple(block.name for block in self.cost.blocks if block.gated):
            raise ValueError("cost does not list the network's gated parts")
        executed = sum(
            len(self.options) * len(part.branch) for part in parts if isinstance(part, GatedPart)
        )
        if executed > MAX_EXECUTIONS:
            raise ValueError("the network has too many operations")
        _ = self.entries
        return self

    @cached_property
    def tensor_table(self) -> dict[str, TensorSpec]:
        """See `Plan.tensor_table`."""
        table: dict[str, TensorSpec] = {}

        def add(name: str, program: Sequence[_Op], bits: int = 0) -> None:
            for position, op in enumerate(program):
                for kind, spec in op.tensors(bits).items():
                    if kind == "input" and feeds_levels(program, position) is not None:
                        spec = TensorSpec((1,), positive=True, optional=True)
                    table[f"{name}.{position}.{kind}"] = spec

        for index, part in enumerate(self.network.parts):
            name = f"parts.{index}"
            if isinstance(part, FixedPart):
                add(name, part.ops)
                continue
            for option in executed(self.options):
                add(f"{name}.{option.label}", part.branch, integer_bits(option))
            add(f"{name}.shortcut", part.shortcut)
        if self.gate is not None:
            pairs = zip(self.network.parts, self.entries, strict=True)
            channels = [shape[0] for part, shape in pairs if part.gated]
            table |= gate_tensors(self.gate, len(self.options), channels)
        return table

    def fault(self, tensors: Mapping[str, NDArray[Any]]) -> str:
        """See `Plan.fault`: where an activation is left to the clamp, the level of 0 is 0."""
        for index, part in enumerate(self.network.parts):
            for option in executed(self.options) if isinstance(part, GatedPart) else ():
                assert isinstance(part, GatedPart)
                for position in range(len(part.branch)):
                    name = f"parts.{index}.{option.label}.{position}"
                    source = feeds_levels(part.branch, position)
                    if source is None or source.act == "none" or f"{name}.input" in tensors:
                        continue
                    if f"{name}.zero" in tensors and tensors[f"{name}.zero"][0]:
                        return f"{name}.zero is not 0, and a clamp must do what {source.act} would"
        return ""


def executed(labels: Sequence[str]) -> list[Option]:
    """Options without skip."""
    return [option for option in canonical(tuple(labels)) if not option.is_skip]


def integer_bits(option: Option) -> int:
    """The width of an option's integers; 0 where it executes in float32."""
    return option.bits if option.bits <= WIDEST_INTEGERS else 0
