"""Operations of a bundle, and programs of them (docs/bundle.md).

An operation takes values (height, width, channels) and gives one; value 0 of a program is what it
takes, value k + 1 what operation k gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fracskip.config import FIRST_FAULT
from fracskip.runtime.elements import (
    Activations,
    NotNegative,
    Positive,
    Size,
    Strict,
    TensorSpec,
    Window,
)

MAX_OPS = 4096
# Clamping to levels does what these would.
CLAMPED = ("none", "relu", "relu6")

Shape = tuple[int, Size]  # channels, (height, width)
Act = Literal["none", "relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "gelu"]
One = tuple[NotNegative]
Two = tuple[NotNegative, NotNegative]


class Operation(Strict):
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


class ConvOp(Operation, Window):
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
        """See `Operation.out_shape`."""
        channels, size = taken[0]
        if channels != self.channels[0]:
            raise ValueError(f"a convolution takes {self.channels[0]} channels, it gets {channels}")
        high, wide = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        reach = Window.model_construct(
            kernel=(high, wide), stride=self.stride, padding=self.padding
        )
        return self.channels[1], reach.out_size(size)

    def tensors(self, bits: int) -> dict[str, TensorSpec]:
        """See `Operation.tensors`."""
        out = (self.channels[1],)
        table = {"weight": TensorSpec(self.weight_shape, bits), "bias": TensorSpec(out)}
        if bits:
            table["scale"] = TensorSpec(out)
            table["input"] = TensorSpec((1,), positive=True)
            table["zero"] = TensorSpec((1,), optional=True, levels=bits)
        return table


class PoolOp(Operation, Window):
    """The largest or the mean of a window.

    Padding never wins, and every window sees the image. Counted, it is zeros like others: so a mean
    of single pixels is what adds zeros around an image.
    """

    op: Literal["pool"] = "pool"
    inputs: One = Field(alias="in")
    kind: Literal["max", "mean"]
    count_padding: bool

    @model_validator(mode="after")
    def _every_window_sees_the_image(self) -> PoolOp:
        if self.kind == "max" and self.count_padding:
            raise ValueError("a max pool counts no padding")
        edges = (*self.kernel, *self.kernel)
        too_wide = any(2 * pad > edge for pad, edge in zip(self.padding, edges, strict=True))
        if too_wide and not self.count_padding:
            raise ValueError("a pool's padding is at most half of its kernel, unless it is counted")
        return self

    def out_shape(self, *taken: Shape) -> Shape:
        """See `Operation.out_shape`."""
        channels, size = taken[0]
        return channels, self.out_size(size)


class MeanOp(Operation):
    """The mean over height and width."""

    op: Literal["mean"] = "mean"
    inputs: One = Field(alias="in")

    def out_shape(self, *taken: Shape) -> Shape:
        """See `Operation.out_shape`."""
        return taken[0][0], (1, 1)


class ActOp(Operation):
    """An activation by itself."""

    op: Literal["act"] = "act"
    inputs: One = Field(alias="in")
    act: Act

    @model_validator(mode="after")
    def _it_does_something(self) -> ActOp:
        if self.act == "none":
            raise ValueError("an act of its own is not 'none'")
        return self


class BinaryOp(Operation):
    """A sum or a product; the second value may be one a channel."""

    op: Literal["add", "mul"]
    inputs: Two = Field(alias="in")

    def out_shape(self, *taken: Shape) -> Shape:
        """See `Operation.out_shape`."""
        first, second = taken
        if second not in (first, (first[0], (1, 1))):
            raise ValueError(f"{self.op} can't take values of {first} and {second}")
        return first


class AffineOp(Operation):
    """A gain and an offset a channel."""

    op: Literal["affine"] = "affine"
    inputs: One = Field(alias="in")
    channels: Positive

    def out_shape(self, *taken: Shape) -> Shape:
        """See `Operation.out_shape`."""
        if taken[0][0] != self.channels:
            raise ValueError(f"{self.op} takes {self.channels} channels, it gets {taken[0][0]}")
        return taken[0]

    def tensors(self, bits: int) -> dict[str, TensorSpec]:
        """See `Operation.tensors`."""
        return {"gain": TensorSpec((self.channels,)), "bias": TensorSpec((self.channels,))}


class NormOp(AffineOp):
    """LayerNorm over the channels of each pixel."""

    op: Literal["norm"] = "norm"  # type: ignore[assignment]
    eps: Annotated[float, Field(gt=0)]


Op = Annotated[
    ConvOp | PoolOp | MeanOp | ActOp | BinaryOp | AffineOp | NormOp, Field(discriminator="op")
]
Program = Annotated[tuple[Op, ...], FIRST_FAULT, Field(max_length=MAX_OPS)]


def follow(
    program: Sequence[Operation],
    shape: Shape,
    what: str,
    activations: Activations | None = None,
) -> Shape:
    """The shape of what a program gives.

    Args:
        program: Its operations.
        shape: Of what it takes.
        what: The part, for errors.
        activations: To which its values are added; by default there is nothing else.

    Raises:
        ValueError: if a value is not there, is not used, does not fit or is too large.
    """
    activations = activations or Activations()
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
        shapes.append(activations.bounded(*found, where))
    if unused := set(range(len(program))) - used:
        raise ValueError(f"{what}: nothing uses value {min(unused)}")
    return shapes[-1]


def feeders(branch: Sequence[Operation]) -> tuple[ConvOp | None, ...]:
    """Of each operation, the convolution that may give it its levels if it is one in integers.

    None where there is no such convolution: its only taker is the one that it may give levels to.
    """
    taken: Counter[int] = Counter()
    for op in branch:
        taken.update(set(op.inputs))  # type: ignore[attr-defined]
    found: list[ConvOp | None] = []
    for op in branch:
        source = branch[op.inputs[0] - 1] if isinstance(op, ConvOp) and op.inputs[0] else None
        feeds = isinstance(source, ConvOp) and source.act in CLAMPED
        found.append(source if feeds and taken[op.inputs[0]] == 1 else None)  # type: ignore[arg-type, attr-defined]
    return tuple(found)


def feeds_levels(branch: Sequence[Operation], position: int) -> ConvOp | None:
    """The convolution that may give an integer convolution of a branch its levels, if there is one.

    Args:
        branch: The branch's operations.
        position: Of the integer convolution.
    """
    return feeders(branch)[position]
