"""A traced network as a bundle of version 2.

Shapes: O output channels, I input channels, kh, kw the kernel.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fracskip.deployment.lowering import Lowered, Scaled, Source, Value, Weighted, lower
from fracskip.deployment.writer import TensorWriter
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.folding import FoldedLayer, fold, folded_norm
from fracskip.dynamic.traced import TracedBlock
from fracskip.dynamic.trunk import Section, TracedTrunk
from fracskip.models.structure import Block
from fracskip.options import FULL_BITS, Option
from fracskip.runtime.graph import (
    ConvOp,
    FixedPart,
    GatedPart,
    GraphNetwork,
    GraphPlan,
    Part,
    executed,
    feeds_levels,
    integer_bits,
)

FULL = Option(FULL_BITS)


class GraphWriter(TensorWriter):
    """Gathers tensors while it walks through a network."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__(net)
        image = net.spec.image
        self._parts: list[Part] = []
        self._at = Value(0, "first", (1, image.channels, *image.size))  # what the next part takes

    def plan(self) -> GraphPlan:
        """See `TensorWriter.plan`."""
        trunk = cast(TracedTrunk, self.net.trunk)
        self._fixed("stem", trunk.begins)
        structured = zip(trunk.blocks, trunk.structure.blocks, trunk.goes_on, strict=True)
        for block, found, section in structured:
            self._gated(block, found)
            self._fixed(f"after {block.name}", section)
        self._fixed("head", trunk.ends)
        network = GraphNetwork(classes=len(self.net.spec.class_names), parts=tuple(self._parts))
        return GraphPlan(network=network, **self.common())

    def _lowered(self, section: Section, taken: Value) -> Lowered:
        trunk = cast(TracedTrunk, self.net.trunk)
        return lower(
            trunk.backbone,
            section.nodes,
            section.entry,
            section.output,
            taken,
            trunk.structure.measured,
        )

    def _fixed(self, name: str, section: Section) -> None:
        program = self._lowered(section, self._at)
        self._at = program.output
        if program.ops:
            self._write(f"parts.{len(self._parts)}", program, FULL)
            self._parts.append(FixedPart(name=name, gated=False, ops=program.ops))

    def _gated(self, block: TracedBlock, found: Block) -> None:
        branch = self._lowered(Section(found.branch, found.entry, found.branch[-1]), self._at)
        ways = found.shortcut or ()
        shortcut = self._lowered(
            Section(ways, found.entry, ways[-1] if ways else found.entry), self._at
        )
        total = found.sum or found.output
        after = self._lowered(Section(found.after, total, found.output), branch.output)
        name = f"parts.{len(self._parts)}"
        for option in executed(self.net.options.labels):
            self._write(f"{name}.{option.label}", branch, option)
        self._write(f"{name}.shortcut", shortcut, FULL)
        self._at = after.output
        self._parts.append(
            GatedPart(
                name=block.name,
                gated=True,
                can_skip=block.can_be_skipped,
                hands_on=block.skips_for_free,
                branch=branch.ops,
                shortcut=shortcut.ops,
                after=after.ops,
            )
        )

    # -- tensors ---------------------------------------------------------------------------------

    def _write(self, name: str, program: Lowered, option: Option) -> None:
        """A program's tensors at an option; a fixed one's in full."""
        bits = integer_bits(option)
        folded = [_folded(source, option) for source in program.sources]
        # What convolutions count in whose values become the levels of the next one: its step.
        units: dict[int, float] = {}
        for position in range(len(folded) if bits else 0):
            if _levels_fit(program, folded, position, bits):
                step = cast(FoldedLayer, folded[position]).input_step
                assert step is not None
                units[cast(ConvOp, program.ops[position]).inputs[0] - 1] = step
        for position, (op, source, layer) in enumerate(
            zip(program.ops, program.sources, folded, strict=True)
        ):
            place = f"{name}.{position}"
            if layer is not None and not bits:
                self._float(place, layer)
            elif layer is not None:
                fed = op.inputs[0] - 1 in units
                self._integer(place, layer, units.get(position, 1.0), fed)
            elif isinstance(source, Scaled):
                self._scaled(place, source, option)

    def _float(self, name: str, folded: FoldedLayer) -> None:
        gain = folded.gain if folded.weight_step is None else folded.gain * folded.weight_step
        weight = folded.weight.double() * gain[:, None, None, None]
        self.put(f"{name}.weight", weight.permute(0, 2, 3, 1))
        self.put(f"{name}.bias", folded.offset)

    def _integer(self, name: str, folded: FoldedLayer, unit: float, fed: bool) -> None:
        """A convolution of levels to values in units of `unit`; `fed`: its levels are given."""
        assert folded.weight_step is not None
        assert folded.input_step is not None
        scale = folded.weight_step * folded.gain * folded.input_step
        bias = folded.offset
        if folded.input_zero:
            bias = bias - folded.input_zero * scale * folded.weight.double().sum((1, 2, 3))
            self.put(f"{name}.zero", torch.tensor([float(folded.input_zero)]))
        if not fed:
            step = torch.tensor([folded.input_step], dtype=torch.float32)
            self.put(f"{name}.input", step.reciprocal())
        self.put(f"{name}.weight", folded.weight.permute(0, 2, 3, 1))
        self.put(f"{name}.scale", scale / unit)
        self.put(f"{name}.bias", bias / unit)

    def _scaled(self, name: str, source: Scaled, option: Option) -> None:
        norm = source.norm
        if isinstance(norm, nn.BatchNorm2d):
            gain, bias = folded_norm(norm, option)
        elif norm is not None:
            ones = torch.ones(norm.normalized_shape)
            gain = ones if norm.weight is None else norm.weight
            bias = 0 * ones if norm.bias is None else norm.bias
        else:
            known = source.gain if source.gain is not None else source.bias
            assert known is not None
            gain = torch.ones_like(known) if source.gain is None else source.gain
            bias = torch.zeros_like(known) if source.bias is None else source.bias
        self.put(f"{name}.gain", gain)
        self.put(f"{name}.bias", bias)


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
