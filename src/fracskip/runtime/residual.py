"""The plan of a CIFAR ResNet's bundle: version 1 (docs/bundle.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fracskip.config import FIRST_FAULT, Texts
from fracskip.options import Option
from fracskip.runtime.plan import (
    MAX_BLOCKS,
    MAX_EXECUTIONS,
    WIDEST_INTEGERS,
    Activations,
    Plan,
    Positive,
    Size,
    Strict,
    TensorSpec,
    Window,
    canonical,
    gate_tensors,
    linear_tensors,
)


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


class BlockPlan(Strict):
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
    options: Texts
    branch: Annotated[tuple[ConvGeometry, ...], FIRST_FAULT, Field(min_length=1)]
    shortcut: ConvGeometry | None

    @property
    def executed(self) -> tuple[Option, ...]:
        """Its options without skip."""
        return tuple(option for option in map(Option.parse, self.options) if not option.is_skip)


class NetworkPlan(Strict):
    """Stem, blocks in order, head."""

    stem: Annotated[tuple[StemOp, ...], FIRST_FAULT, Field(min_length=1)]
    blocks: Annotated[
        tuple[BlockPlan, ...], FIRST_FAULT, Field(min_length=1, max_length=MAX_BLOCKS)
    ]
    classes: Positive


class ResidualPlan(Plan):
    """The whole plan."""

    version: Literal[1] = 1
    network: NetworkPlan

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
    def gated_names(self) -> tuple[str, ...]:
        """See `Plan.gated_names`."""
        return tuple(block.name for block in self.gated)

    def needed(self) -> Iterator[tuple[str, TensorSpec]]:
        """See `Plan.needed`."""
        return _needed(self)

    @model_validator(mode="after")
    def _it_is_a_network(self) -> ResidualPlan:
        blocks = self.network.blocks
        for block in blocks:
            if block.gated and block.options != self.options:
                raise ValueError(f"gated block {block.name} must have the network's options")
            if not block.gated and len(canonical(block.options)) != 1:
                raise ValueError(f"ungated block {block.name} must have one option")
        if sum(len(block.options) * len(block.branch) for block in blocks) > MAX_EXECUTIONS:
            raise ValueError("the network has too many convolutions")
        if len({block.name for block in blocks}) != len(blocks):
            raise ValueError("two blocks have one name")
        priced = tuple((block.name, block.gated) for block in self.cost.blocks)
        if priced != tuple((block.name, block.gated) for block in blocks):
            raise ValueError("cost does not list the network's blocks")
        _walk(self)
        return self


def _walk(plan: ResidualPlan) -> None:
    """Follows one image's shape through the network.

    Raises:
        ValueError: where a shape does not fit the next, or is too large.
    """
    channels: int = plan.image.channels
    size = plan.image.size
    bounded = Activations().bounded

    def convolve(conv: ConvGeometry, channels: int, size: Size, what: str) -> tuple[int, Size]:
        if conv.in_channels != channels:
            raise ValueError(f"{what} takes {conv.in_channels} channels, it gets {channels}")
        return bounded(conv.out_channels, conv.out_size(size), what)

    bounded(channels, size, "the image")
    if not isinstance(plan.network.stem[0], StemConv):
        raise ValueError("the stem must begin with a convolution")
    for position, op in enumerate(plan.network.stem):
        if isinstance(op, StemConv):
            channels, size = convolve(op, channels, size, f"stem {position}")
        else:
            channels, size = bounded(channels, op.out_size(size), f"stem {position}")
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


def _needed(plan: ResidualPlan) -> Iterator[tuple[str, TensorSpec]]:
    for position, op in enumerate(plan.network.stem):
        if isinstance(op, StemConv):
            yield from _convolution(f"stem.{position}", op, 0)
    if plan.integer_stream:
        yield "stream.steps", TensorSpec((plan.stages[-1] + 1,), positive=True)
    for index, block in enumerate(plan.network.blocks):
        for option in block.executed:
            name = f"blocks.{index}.{option.label}"
            bits = option.bits if option.bits <= WIDEST_INTEGERS else 0
            for position, conv in enumerate(block.branch):
                yield from _convolution(f"{name}.{position}", conv, bits)
            if bits:
                levels_fit = plan.integer_stream and bits == WIDEST_INTEGERS
                yield f"{name}.input", TensorSpec((1,), positive=True, optional=levels_fit)
        if block.shortcut is not None:
            bits = WIDEST_INTEGERS if plan.integer_stream else 0
            yield from _convolution(f"blocks.{index}.shortcut", block.shortcut, bits)
    if plan.gate is not None:
        channels = [block.branch[0].in_channels for block in plan.gated]
        yield from gate_tensors(plan.gate, len(plan.options), channels).items()
    leaving = plan.network.blocks[-1].branch[-1].out_channels
    yield from linear_tensors("head", plan.network.classes, leaving).items()


def _convolution(name: str, conv: ConvGeometry, bits: int) -> Iterator[tuple[str, TensorSpec]]:
    yield f"{name}.weight", TensorSpec(conv.weight_shape, bits)
    yield f"{name}.bias", TensorSpec((conv.out_channels,))
    if bits:
        yield f"{name}.scale", TensorSpec((conv.out_channels,))
