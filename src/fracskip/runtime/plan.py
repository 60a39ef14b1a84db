"""The plan of a bundle, as typed, frozen values (docs/bundle.md).

A network is a chain of parts between which one value flows; a part executes programs of operations.
Validation follows one image through the shapes, so a plan that is accepted can be executed, and
`needed` says exactly which tensors it needs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fracskip.config import FIRST_FAULT, ImageConfig, Texts
from fracskip.cost.profile import NetworkProfile
from fracskip.operating import cost_weights, masks
from fracskip.options import FULL_BITS, Option, OptionSet
from fracskip.runtime.elements import (
    MAX_BLOCKS,
    MAX_EXECUTIONS,
    MAX_MACS,
    SCHEMA,
    WIDEST_INTEGERS,
    Activations,
    GatePlan,
    PlannedPoints,
    Positive,
    Strict,
    TensorSpec,
    canonical,
    gate_tensors,
)
from fracskip.runtime.operations import ActOp, ConvOp, Program, Shape, feeders, follow

STREAM_BITS = 8  # of an int8 stream


class Part(Strict):
    """A block, or what lies between blocks: y = after(branch(x) + shortcut(x)), or y = branch(x).

    Attributes:
        name: Its name in the network.
        gated: Whether a gate chooses its option.
        options: The network's, for a gated part; else the one that it executes.
        residual: Whether there is a shortcut, so that skipping the branch leaves something.
        skip_is_identity: Whether a skipped part gives what it takes.
        branch: What an option scales.
        shortcut: What is added to it; nothing is the identity.
        shortcut_option: The option at which the shortcut is executed; None where it is empty.
        after: What is done to the sum.
    """

    name: str
    gated: bool
    options: Texts
    residual: bool
    skip_is_identity: bool
    branch: Annotated[Program, Field(min_length=1)]
    shortcut: Program
    shortcut_option: str | None
    after: Program

    @property
    def executed(self) -> tuple[Option, ...]:
        """Its options without skip."""
        return tuple(option for option in map(Option.parse, self.options) if not option.is_skip)

    @model_validator(mode="after")
    def _what_is_skipped_has_a_shortcut(self) -> Part:
        if not self.residual and (self.skip_is_identity or self.shortcut or self.after):
            raise ValueError(f"{self.name} has no residual sum, so its branch is all there is")
        if self.skip_is_identity and self.shortcut:
            raise ValueError(f"{self.name} has a projection, so skipping it is no identity")
        if any(not isinstance(op, ActOp) for op in self.after):
            raise ValueError(f"{self.name}: nothing but activations follows a sum")
        if self.gated and not self.name:
            raise ValueError("a gated part has a name")
        if not self.gated:
            _one_width(self.options, f"part {self.name!r}, which is not gated,")
        if (self.shortcut_option is None) != (not self.shortcut):
            raise ValueError(f"{self.name}: a shortcut has an option if and only if it computes")
        if self.shortcut_option is not None:
            _one_width((self.shortcut_option,), f"the shortcut of {self.name}")
        return self


def _one_width(options: tuple[str, ...], what: str) -> None:
    if len(canonical(options)) != 1 or Option.parse(options[0]).is_skip:
        raise ValueError(f"{what} executes one option, never skip; not {list(options)}")


class Network(Strict):
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


class Plan(Strict):
    """The whole plan.

    Attributes:
        name: The backbone's name.
        source: Digest of the checkpoint it was made from.
        data_name: What it was trained on.
        class_names: One a class.
        image: Size, channels and normalisation of its input.
        options: Labels of what its gates choose from.
        stream: What runs between parts: floats, or levels of one step a part.
        cost: MACs, so that decisions can be priced.
        network: What is executed.
        gate: Who decides; None for a static network (one option).
        operating_points: How it is operated.
    """

    schema_name: Literal["fracskip.bundle"] = Field(SCHEMA, alias="schema")
    version: Literal[4] = 4
    name: Annotated[str, Field(min_length=1)]
    source: str
    data_name: str
    class_names: Texts
    image: ImageConfig
    options: Texts
    stream: Literal["float", "int8"]
    cost: NetworkProfile
    network: Network
    gate: GatePlan | None
    operating_points: PlannedPoints

    # -- options and budgets ---------------------------------------------------------------------

    @cached_property
    def option_set(self) -> OptionSet:
        """The gated parts' options."""
        return OptionSet.of(self.options)

    @property
    def budget_input(self) -> bool:
        """Whether the gate takes a budget."""
        return self.gate is not None and self.gate.budget_input

    @property
    def budgets(self) -> tuple[float, float] | None:
        """The smallest and the largest budget that a caller may name; None if it takes none."""
        return self.operating_points.budgets(self.budget_input)

    @cached_property
    def cost_weights(self) -> NDArray[np.float32]:
        """What a multiplier weighs of each block's options, (L, K); see `fracskip.operating`."""
        output = "logit" if self.gate is None else self.gate.output
        return cost_weights(self.option_set, output, len(self.gated))

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """Which options a block can't execute, (L, K); see `fracskip.operating`."""
        return masks(self.option_set, [part.residual for part in self.gated])

    # -- parts -----------------------------------------------------------------------------------

    @cached_property
    def gated(self) -> tuple[Part, ...]:
        """The gated parts in order: the columns of a decision matrix."""
        return tuple(part for part in self.network.parts if part.gated)

    @property
    def gated_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(part.name for part in self.gated)

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
            end = follow(part.branch, shape, what, activations)
            if part.residual:
                where = f"the shortcut of {what}"
                short = follow(part.shortcut, shape, where, activations)
                if short != end:
                    raise ValueError(f"{what}: the branch gives {end}, the shortcut {short}")
                end = follow(part.after, end, what, activations)
            shape = end
        if shape != (self.network.classes, (1, 1)):
            raise ValueError(f"the last part gives {shape}, not {self.network.classes} logits")
        return tuple(found)

    @cached_property
    def programs(self) -> tuple[NamedProgram, ...]:
        """All programs that have tensors, part by part."""
        found = []
        for index, part in enumerate(self.network.parts):
            name = f"parts.{index}"
            entry = index - 1 if self.stream == "int8" and index else None
            for option in part.executed:
                branch = f"{name}.{option.label}"
                found.append(NamedProgram(branch, part.branch, integer_bits(option), entry))
            if part.shortcut_option is not None:
                bits = integer_bits(Option.parse(part.shortcut_option))
                found.append(NamedProgram(f"{name}.shortcut", part.shortcut, bits, entry))
        return tuple(found)

    # -- tensors ---------------------------------------------------------------------------------

    def needed(self) -> Iterator[tuple[str, TensorSpec]]:
        """The tensors that the plan needs, with their names, one after the other.

        There may be far more of them than a file holds: whoever checks one stops at the first that
        it lacks.
        """
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

    @property
    def tensor_table(self) -> dict[str, TensorSpec]:
        """The same by name."""
        return dict(self.needed())

    def fault(self, tensors: Mapping[str, NDArray[Any]]) -> str:
        """What is wrong between tensors that are right by themselves; '' if nothing is.

        That is: what clamps do, and grids that several have in common.
        """

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
            if not part.residual:
                continue
            name, before = f"parts.{index}", f"parts.{index - 1}"
            if part.after and number(f"{name}.zero"):
                return f"{name}.zero is not 0, and a clamp must do what a ReLU would"
            for kind in ("step", "zero"):
                if not part.shortcut and number(f"{name}.{kind}") != number(f"{before}.{kind}"):
                    return f"{name}.{kind} is not that of the levels that its shortcut hands on"
        return ""

    # -- validation ------------------------------------------------------------------------------

    @model_validator(mode="after")
    def _it_is_whole(self) -> Plan:
        if len(self.class_names) != self.network.classes:
            raise ValueError(
                f"{self.network.classes} classes need as many names, not {len(self.class_names)}"
            )
        if (len(canonical(self.options)) == 1) != (self.gate is None):
            raise ValueError("a network has a gate if and only if it has several options")
        if self.gate is None and self.operating_points.range is not None:
            raise ValueError("a network without a gate has no multiplier curve and no cascade")
        _check_cost(self.cost)
        self._check_parts()
        _ = self.entries
        return self

    def _check_parts(self) -> None:
        parts, names = self.network.parts, self.gated_names
        for part in parts:
            if part.gated and part.options != self.options:
                raise ValueError(f"gated part {part.name} must have the network's options")
        if len(set(names)) != len(names):
            raise ValueError("two gated parts have one name")
        if names != tuple(block.name for block in self.cost.blocks if block.gated):
            raise ValueError("cost does not list the network's gated parts")
        if sum(len(p.executed) * len(p.branch) + len(p.shortcut) for p in parts) > MAX_EXECUTIONS:
            raise ValueError("the network has too many operations")
        if any(part.gated or part.residual for part in (parts[0], parts[-1])):
            raise ValueError("the first and the last part are not gated and have no residual sum")
        for part in parts if self.stream == "int8" else ():
            if [op.act for op in part.after] not in ([], ["relu"]):  # type: ignore[union-attr]
                raise ValueError(f"{part.name}: in an int8 stream, a ReLU may follow a sum")


def _check_cost(cost: NetworkProfile) -> None:
    macs = [cost.stem_macs, cost.head_macs]
    for block in cost.blocks:
        macs += [block.branch_macs, block.shortcut_macs, block.gate_macs]
    if not all(0 <= count <= MAX_MACS for count in macs):
        raise ValueError("MACs are 0 to 2^53")
    if not cost.backbone_macs:
        raise ValueError("cost counts no MACs, so nothing could be priced in their units")
    widths = [cost.stem_bits, cost.head_bits, *(block.fixed_bits for block in cost.blocks)]
    if any(not 0 < bits <= FULL_BITS for bits in widths):
        raise ValueError(f"what is fixed has 1 to {FULL_BITS} bits")


def integer_bits(option: Option) -> int:
    """The width of an option's integers; 0 where it executes in float32."""
    return option.bits if option.bits <= WIDEST_INTEGERS else 0
