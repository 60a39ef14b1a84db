"""A traced network as a bundle of version 2.

Shapes: O output channels, I input channels, kh, kw the kernel.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fracskip.deployment.lowered import Lowered, Norm, Scaled, Source, Value, Weighted
from fracskip.deployment.lowering import lower
from fracskip.deployment.units import Grid, Units, in_units
from fracskip.deployment.writer import TensorWriter
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.block import STREAM_OPTION
from fracskip.dynamic.folding import FoldedLayer, fold, folded_norm
from fracskip.dynamic.traced import FULL, Section, TracedBlock
from fracskip.dynamic.trunk import TracedTrunk
from fracskip.models.structure import Block
from fracskip.options import Option
from fracskip.runtime.graph import (
    FixedPart,
    GatedPart,
    GraphNetwork,
    GraphPlan,
    Part,
    executed,
    integer_bits,
)
from fracskip.runtime.operations import ConvOp, feeds_levels


class GraphWriter(TensorWriter):
    """Gathers tensors while it walks through a network."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__(net)
        image = net.spec.image
        self._trunk = cast(TracedTrunk, net.trunk)
        self._fixed_option = FULL if net.stream is None else STREAM_OPTION
        self._parts: list[Part] = []
        # What the next part takes, and its grid in an int8 stream.
        self._at = Value(0, "first", (1, image.channels, *image.size))
        self._grid: Grid | None = None

    def plan(self) -> GraphPlan:
        """See `TensorWriter.plan`."""
        trunk = self._trunk
        self._fixed("stem", trunk.begins, self._grid_of(0))
        for block, found, section, (own, onward) in zip(
            trunk.blocks, trunk.structure.blocks, trunk.goes_on, trunk.stages, strict=True
        ):
            self._gated(block, found, self._grid_of(own))
            self._fixed(f"after {block.name}", section, self._grid_of(onward))
        self._fixed("head", trunk.ends, None)
        network = GraphNetwork(classes=len(self.net.spec.class_names), parts=tuple(self._parts))
        stream = self.net.spec.quant.stream
        return GraphPlan(stream=stream, network=network, **self.common())

    def _grid_of(self, stage: int) -> Grid | None:
        stream = self.net.stream
        if stream is None:
            return None
        return Grid(float(stream.step(stage).detach()), stream.zero(stage))

    def _lowered(self, section: Section, taken: Value) -> Lowered:
        trunk = self._trunk
        return lower(
            trunk.backbone,
            trunk.structure.graph,
            section.nodes,
            section.entry,
            section.output,
            taken,
        )

    def _fixed(self, name: str, section: Section, grid: Grid | None) -> None:
        program = self._lowered(section, self._at)
        self._at = program.output
        # Another grid for the same values is something to compute.
        if program.ops or (grid is not None and grid != self._grid):
            program, units = in_units(program, grid)
            self._write(f"parts.{len(self._parts)}", program, self._fixed_option, units)
            self._add(FixedPart(name=name, gated=False, ops=program.ops), grid)

    def _gated(self, block: TracedBlock, found: Block, grid: Grid | None) -> None:
        branch = self._lowered(Section(found.branch, found.entry, found.branch[-1]), self._at)
        ways = found.shortcut or ()
        shortcut = self._lowered(
            Section(ways, found.entry, ways[-1] if ways else found.entry), self._at
        )
        total = found.sum or found.output
        after = self._lowered(Section(found.after, total, found.output), branch.output)
        self._at = after.output
        name = f"parts.{len(self._parts)}"
        # One of the two that are added brings the level of 0 along.
        added = grid if grid is None or not block.can_be_skipped else Grid(grid.step)
        branch, units = in_units(branch, added)
        for option in executed(self.net.options.labels):
            self._write(f"{name}.{option.label}", branch, option, units)
        if shortcut.ops:
            shortcut, units = in_units(shortcut, grid)
            self._write(f"{name}.shortcut", shortcut, self._fixed_option, units)
        part = GatedPart(
            name=block.name,
            gated=True,
            can_skip=block.can_be_skipped,
            hands_on=block.skips_for_free,
            branch=branch.ops,
            shortcut=shortcut.ops,
            after=after.ops,
        )
        self._add(part, grid)

    def _add(self, part: Part, grid: Grid | None) -> None:
        name = f"parts.{len(self._parts)}"
        if grid is not None:
            self.put(f"{name}.step", torch.tensor([grid.step]))
            if grid.zero:
                self.put(f"{name}.zero", torch.tensor([float(grid.zero)]))
        self._parts.append(part)
        self._grid = grid

    # -- tensors ---------------------------------------------------------------------------------

    def _write(self, name: str, program: Lowered, option: Option, units: Units) -> None:
        """A program's tensors at an option, values of some operations in units of their own."""
        bits = integer_bits(option)
        folded = [_folded(source, option) for source in program.sources]
        units = dict(units)
        # What convolutions count in whose values become the levels of the next one: its step.
        fed = [
            position
            for position in range(len(folded) if bits else 0)
            if _levels_fit(program, folded, position, bits)
        ]
        for position in fed:
            step = cast(FoldedLayer, folded[position]).input_step
            assert step is not None
            units[cast(ConvOp, program.ops[position]).inputs[0] - 1] = Grid(step)
        for position, (source, layer) in enumerate(zip(program.sources, folded, strict=True)):
            place, unit = f"{name}.{position}", units.get(position, Grid(1.0))
            if layer is not None and not bits:
                self._float(place, layer, unit)
            elif layer is not None:
                self._integer(place, layer, unit, position in fed)
            elif isinstance(source, Scaled | nn.Module):
                self._scaled(place, source, option, unit)

    def _float(self, name: str, folded: FoldedLayer, unit: Grid) -> None:
        gain = folded.gain if folded.weight_step is None else folded.gain * folded.weight_step
        weight = folded.weight.double() * (gain / unit.step)[:, None, None, None]
        self.put(f"{name}.weight", weight.permute(0, 2, 3, 1))
        self.put(f"{name}.bias", folded.offset / unit.step + unit.zero)

    def _integer(self, name: str, folded: FoldedLayer, unit: Grid, fed: bool) -> None:
        """A convolution of levels to values in units of a grid; `fed`: its levels are given."""
        assert folded.weight_step is not None
        # Without a step of its own it takes the stream's levels.
        own = folded.input_step is not None
        taken = Grid(folded.input_step, folded.input_zero) if own else self._grid  # type: ignore[arg-type]
        assert taken is not None
        scale = folded.weight_step * folded.gain * taken.step
        bias = folded.offset
        if taken.zero:
            bias = bias - taken.zero * scale * folded.weight.double().sum((1, 2, 3))
            self.put(f"{name}.zero", torch.tensor([float(taken.zero)]))
        if own and not fed:
            step = torch.tensor([taken.step], dtype=torch.float32)
            self.put(f"{name}.input", step.reciprocal())
        self.put(f"{name}.weight", folded.weight.permute(0, 2, 3, 1))
        self.put(f"{name}.scale", scale / unit.step)
        self.put(f"{name}.bias", bias / unit.step + unit.zero)

    def _scaled(self, name: str, source: Scaled | Norm, option: Option, unit: Grid) -> None:
        if isinstance(source, Scaled):
            gain, bias = source.gain, source.bias
        else:
            gain, bias = folded_norm(source, option)
        self.put(f"{name}.gain", gain / unit.step)
        self.put(f"{name}.bias", bias / unit.step + unit.zero)


def _folded(source: Source, option: Option) -> FoldedLayer | None:
    return fold(source.layer, source.norm, option) if isinstance(source, Weighted) else None


def _levels_fit(
    program: Lowered, folded: list[FoldedLayer | None], position: int, bits: int
) -> bool:
    """Whether a convolution's levels can be given by the one before it: see docs/bundle.md."""
    source, layer = feeds_levels(program.ops, position), folded[position]
    if source is None or layer is None or layer.input_step is None:
        return False
    if source.act == "none":
        return True
    # ReLU6 is left to the clamp only where that comes first.
    within = source.act == "relu" or (2**bits - 1) * layer.input_step <= 6
    return within and not layer.input_zero
