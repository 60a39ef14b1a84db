"""A network as a bundle's plan and tensors.

Shapes: O output channels, I input channels, kh, kw the kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from fracskip.deployment.lowered import Lowered, Norm, Scaled, Source, Value, Weighted
from fracskip.deployment.lowering import lower
from fracskip.deployment.units import Grid, Units, in_units
from fracskip.deployment.writer import TensorWriter
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.block import FractionalBlock
from fracskip.dynamic.fixed import FixedSteps, Section
from fracskip.dynamic.folding import FoldedLayer, fold, folded_norm
from fracskip.options import Option
from fracskip.runtime.operations import ConvOp, MeanOp, Op, feeds_levels
from fracskip.runtime.plan import Network, Part, Plan, integer_bits


class NetworkWriter(TensorWriter):
    """Gathers tensors while it follows what flows through a network."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__(net)
        image = net.spec.image
        self._sections = net.sections
        self._parts: list[Part] = []
        # What the next part takes, and its grid in an int8 stream.
        self._at = Value(0, "first", (1, image.channels, *image.size))
        self._grid: Grid | None = None

    def plan(self) -> Plan:
        """The plan; `tensors` is filled on the way."""
        sections = self._sections
        self._fixed("stem", sections.stem)
        for block in sections.every:
            self._block(block, block in sections.blocks)
            self._fixed(f"after {block.name}", block.onward)
        self._fixed("head", sections.head, ends=True)
        network = Network(classes=len(self.net.spec.class_names), parts=tuple(self._parts))
        stream = self.net.spec.quant.stream
        return Plan(stream=stream, network=network, **self.common())

    def _grid_of(self, stage: int | None) -> Grid | None:
        """A stage's grid; of what begins none, that of what is taken."""
        stream = self.net.stream
        if stream is None or stage is None:
            return self._grid
        return Grid(float(stream.step(stage).detach()), stream.zero(stage))

    def _lowered(self, section: Section, taken: Value) -> Lowered:
        sections = self._sections
        return lower(
            sections.backbone,
            sections.structure.graph,
            section.nodes,
            section.entry,
            section.output,
            taken,
        )

    def _fixed(self, name: str, steps: FixedSteps, ends: bool = False) -> None:
        """Adds what lies between blocks, if anything; `ends`: it gives the logits."""
        program = self._lowered(steps.section, self._at)
        grid = None if ends else self._grid_of(steps.stage)
        if ends and not program.ops:
            # The last block gives the logits, as one pixel: whose mean makes values of levels.
            program = Lowered((MeanOp(inputs=(0,)),), (None,), replace(program.output, index=1))
        self._at = program.output
        # Another grid for the same values is something to compute.
        if program.ops or (grid is not None and grid != self._grid):
            program, units = in_units(program, grid)
            option = steps.option
            self._write(f"parts.{len(self._parts)}.{option.label}", program, option, units)
            part = Part(
                name=name,
                gated=False,
                options=(option.label,),
                residual=False,
                skip_is_identity=False,
                branch=program.ops,
                shortcut=(),
                shortcut_option=None,
                after=(),
            )
            self._add(part, grid)

    def _block(self, block: FractionalBlock, gated: bool) -> None:
        found, grid = block.block, self._grid_of(block.stage)
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
        for option in block.options:
            if not option.is_skip:
                self._write(f"{name}.{option.label}", branch, option, units)
        if shortcut.ops:
            shortcut, units = in_units(shortcut, grid)
            self._write(f"{name}.shortcut", shortcut, block.shortcut_option, units)
        part = Part(
            name=block.name,
            gated=gated,
            options=block.options.labels,
            residual=block.can_be_skipped,
            skip_is_identity=block.skip_is_identity,
            branch=branch.ops,
            shortcut=shortcut.ops,
            shortcut_option=block.shortcut_option.label if shortcut.ops else None,
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
        pairs = zip(program.ops, program.sources, strict=True)
        folded = [_folded(op, source, option) for op, source in pairs]
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


def _folded(op: Op, source: Source, option: Option) -> FoldedLayer | None:
    if not isinstance(source, Weighted):
        return None
    assert isinstance(op, ConvOp)
    layer = fold(source.layer, source.norm, option)
    # A linear layer of a whole image, channel by channel, is a convolution of its size.
    return replace(layer, weight=layer.weight.reshape(len(layer.weight), -1, *op.kernel))


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
