"""The plan of any other network's bundle: version 2 (docs/bundle.md).

A network is a chain of parts between which one value flows; a part executes programs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field, model_validator

from fracskip.config import FIRST_FAULT
from fracskip.options import Option
from fracskip.runtime.operations import ActOp, ConvOp, Program, Shape, feeders, follow
from fracskip.runtime.plan import (
    MAX_BLOCKS,
    MAX_EXECUTIONS,
    WIDEST_INTEGERS,
    Activations,
    Plan,
    Positive,
    Strict,
    TensorSpec,
    canonical,
    gate_tensors,
)

STREAM_BITS = 8  # of an int8 stream


class FixedPart(Strict):
    """What is always executed: in float32, or at 8 bits where the stream is of those."""

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
    parts: Annotated[tuple[Part, ...], FIRST_FAULT, Field(min_length=1, max_length=MAX_BLOCKS)]


@dataclass(frozen=True)
class NamedProgram:
    """A program as a bundle has it.

    Attributes:
        name: Of its tensors.
        ops: Its operations.
        bits: Width of its integers; 0 is float32.
        entry: The part whose levels it takes; None where it takes values in float32.
    """

    name: str
    ops: Program
    bits: int
    entry: int | None

    @cached_property
    def feeders(self) -> tuple[ConvOp | None, ...]:
        """Of each operation, what may give it its levels; see `operations.feeders`."""
        return feeders(self.ops)

    def may_take_levels(self, position: int) -> bool:
        """Whether an operation may take the stream's levels as they are."""
        op = self.ops[position]
        of_the_stream = self.bits == STREAM_BITS and self.entry is not None
        return of_the_stream and isinstance(op, ConvOp) and op.inputs == (0,)

    def takes_levels(self, position: int, tensors: Container[str]) -> bool:
        """Whether it does, in a bundle with these tensors."""
        return self.may_take_levels(position) and f"{self.name}.{position}.input" not in tensors

    def left_to_clamps(self, tensors: Container[str]) -> set[int]:
        """The operations whose activation is not executed: a clamp to levels does it.

        Args:
            tensors: Names of the bundle's.
        """
        return {
            op.inputs[0] - 1
            for position, op in enumerate(self.ops if self.bits else ())
            if self.feeders[position] is not None and f"{self.name}.{position}.input" not in tensors
        }


class GraphPlan(Plan):
    """The whole plan."""

    version: Literal[2] = 2
    stream: Literal["float", "int8"] = "float"
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
        activations = Activations()
        shape = activations.bounded(self.image.channels, self.image.size, "the image")
        found = []
        for index, part in enumerate(self.network.parts):
            what = f"part {index} ({part.name})"
            found.append(shape)
            if isinstance(part, FixedPart):
                shape = follow(part.ops, shape, what, activations)
                continue
            end = follow(part.branch, shape, what, activations)
            if part.can_skip:
                where = f"the shortcut of {what}"
                short = follow(part.shortcut, shape, where, activations)
                if short != end:
                    raise ValueError(f"{what}: the branch gives {end}, the shortcut {short}")
                end = follow(part.after, end, what, activations)
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
        if sum(_executions(part, len(self.options)) for part in parts) > MAX_EXECUTIONS:
            raise ValueError("the network has too many operations")
        if self.stream == "int8":
            self._check_stream()
        _ = self.entries
        return self

    def _check_stream(self) -> None:
        first, *others = self.network.parts
        if not (isinstance(first, FixedPart) and others):
            raise ValueError("an int8 stream needs a fixed first part, and others")
        for part in self.network.parts:
            if isinstance(part, FixedPart) and not part.ops:
                raise ValueError(f"part {part.name!r} of an int8 stream has no operations")
            if isinstance(part, GatedPart) and [op.act for op in part.after] not in ([], ["relu"]):  # type: ignore[union-attr]
                raise ValueError(f"{part.name}: in an int8 stream, a ReLU may follow a sum")

    @property
    def fixed_bits(self) -> int:
        """Width of the integers of what is always executed; 0 is float32."""
        return STREAM_BITS if self.stream == "int8" else 0

    @cached_property
    def programs(self) -> tuple[NamedProgram, ...]:
        """All programs that have tensors, part by part."""
        found = []
        for index, part in enumerate(self.network.parts):
            name = f"parts.{index}"
            entry = index - 1 if self.stream == "int8" and index else None
            if isinstance(part, FixedPart):
                found.append(NamedProgram(name, part.ops, self.fixed_bits, entry))
                continue
            for option in executed(self.options):
                branch = f"{name}.{option.label}"
                found.append(NamedProgram(branch, part.branch, integer_bits(option), entry))
            found.append(NamedProgram(f"{name}.shortcut", part.shortcut, self.fixed_bits, entry))
        return tuple(found)

    def needed(self) -> Iterator[tuple[str, TensorSpec]]:
        """See `Plan.needed`."""
        for program in self.programs:
            for position, op in enumerate(program.ops):
                fed = program.feeders[position] is not None
                for kind, spec in op.tensors(program.bits).items():
                    if kind == "input" and (fed or program.may_take_levels(position)):
                        spec = replace(spec, optional=True)
                    yield f"{program.name}.{position}.{kind}", spec
        if self.stream == "int8":
            for index in range(len(self.network.parts) - 1):
                yield f"parts.{index}.step", TensorSpec((1,), positive=True)
                yield f"parts.{index}.zero", TensorSpec((1,), optional=True, levels=STREAM_BITS)
        if self.gate is not None:
            pairs = zip(self.network.parts, self.entries, strict=True)
            channels = [shape[0] for part, shape in pairs if part.gated]
            yield from gate_tensors(self.gate, len(self.options), channels).items()

    def fault(self, tensors: Mapping[str, NDArray[Any]]) -> str:
        """See `Plan.fault`: what clamps do, and grids that several have in common."""

        def number(name: str) -> float:
            return float(tensors[name][0]) if name in tensors else 0.0

        for program in self.programs:
            for position in range(len(program.ops) if program.bits else 0):
                name = f"{program.name}.{position}"
                source, zero = program.feeders[position], number(f"{name}.zero")
                if f"{name}.input" in tensors or f"{name}.weight" not in tensors:
                    continue
                if source is not None and source.act != "none" and zero:
                    return f"{name}.zero is not 0, and a clamp must do what {source.act} would"
                if source is None and zero != number(f"parts.{program.entry}.zero"):
                    return f"{name}.zero is not that of the levels that it takes"
        for index, part in enumerate(self.network.parts if self.stream == "int8" else ()):
            if not isinstance(part, GatedPart) or not part.can_skip:
                continue
            name, before = f"parts.{index}", f"parts.{index - 1}"
            if part.after and number(f"{name}.zero"):
                return f"{name}.zero is not 0, and a clamp must do what a ReLU would"
            for kind in ("step", "zero"):
                if not part.shortcut and number(f"{name}.{kind}") != number(f"{before}.{kind}"):
                    return f"{name}.{kind} is not that of the levels that its shortcut hands on"
        return ""


def _executions(part: FixedPart | GatedPart, options: int) -> int:
    if isinstance(part, FixedPart):
        return len(part.ops)
    return options * len(part.branch) + len(part.shortcut)


def executed(labels: Sequence[str]) -> list[Option]:
    """Options without skip."""
    return [option for option in canonical(tuple(labels)) if not option.is_skip]


def integer_bits(option: Option) -> int:
    """The width of an option's integers; 0 where it executes in float32."""
    return option.bits if option.bits <= WIDEST_INTEGERS else 0
