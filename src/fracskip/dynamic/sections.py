"""A network's way from images to logits, block by block.

Shapes: B images, C channels, H height, W width, N classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.config import ModelSpec, QuantConfig
from fracskip.cost.profile import BlockProfile, NetworkProfile
from fracskip.dynamic.block import FractionalBlock
from fracskip.dynamic.fixed import FULL, STREAM_OPTION, FixedSteps, Section
from fracskip.dynamic.routing import Gather
from fracskip.errors import ConfigError
from fracskip.models.graph import Graph, Node
from fracskip.models.steps import TracedNetwork
from fracskip.models.structure import (
    Block,
    Structure,
    find_blocks,
    is_identity,
    is_relu,
    never_negative,
    quantisable,
    within,
)
from fracskip.options import Option, OptionSet
from fracskip.quant.quantisers import thinned
from fracskip.quant.stream import StreamQuantiser


class Sections:
    """A backbone as a chain of parts between which one value flows.

    What lies before the first block is the stem, what lies behind the last one is the head. Both,
    the first block, what lies between two blocks, and all projections are always executed: in
    full, or at 8 bits where the stream between blocks is of 8-bit integers (stem and head at the
    option that `QuantConfig` names).

    Args:
        backbone: The network; what is quantised is converted in place.
        spec: What becomes of it.
        structure: Its blocks, where they are known.

    Attributes:
        structure: Where its blocks are.
        backbone: The network.
        profile: What its parts cost, gates not counted.
        stream: What quantises the stream between blocks, if anything does.
        stem: What lies before the first block.
        every: All blocks in order, that which no gate decides for included.
        ungated: Those in front that no gate decides for: the first block, or none.
        blocks: Those that are decided for.
        head: What lies behind the last.

    Raises:
        ConfigError: if gates have nothing to decide for, nothing is quantised that should be, or
            an int8 stream can't run between blocks.
    """

    def __init__(
        self, backbone: nn.Module, spec: ModelSpec, structure: Structure | None = None
    ) -> None:
        if structure is None:
            image = (spec.image.channels, *spec.image.size)
            structure = find_blocks(backbone, image, spec.model.blocks or None)
        for module in backbone.modules():
            if getattr(module, "inplace", False):  # a dropout's
                # What a block is given, its other options need as well.
                module.inplace = False  # type: ignore[assignment]
        structure = _fitting(structure, spec, type(backbone).__name__)
        self.structure, self.backbone = structure, backbone
        self._rows = _rows(structure, backbone)
        graph, first = structure.graph, structure.first
        found = structure.blocks if first is None else (first, *structure.blocks)
        self.profile = _profile(graph, found, first, spec.quant)
        start, last = graph[0], graph[graph.output]
        begin, end = (found[0].entry, found[-1].output) if found else (start, start)
        untils = [*(block.entry for block in found[1:]), end][: len(found)]
        between = [
            Section(graph.between(block.output, until), block.output, until)
            for block, until in zip(found, untils, strict=True)
        ]
        stages, signed = _stages(graph, found, between)
        self.stream: StreamQuantiser | None = None
        if signed and spec.quant.stream == "int8":
            self.stream = StreamQuantiser(len(signed), signed)
        fixed = functools.partial(FixedSteps, backbone, graph, quant=spec.quant, stream=self.stream)
        stem, inside, head = fixed_options(spec.quant)
        section = Section(graph.between(start, begin), start, begin)
        self.stem = fixed(section, option=stem, stage=0, levels_in=False)
        blocks = []
        for block, section, (own, onward) in zip(found, between, stages, strict=True):
            gated = block is not first
            option = inside if section.nodes else FULL
            blocks.append(
                FractionalBlock(
                    backbone,
                    graph,
                    block,
                    spec.option_set if gated else OptionSet((inside,)),
                    spec.quant,
                    inside if block.shortcut else FULL,
                    fixed(section, option=option, stage=onward if onward != own else None),
                    self.stream,
                    own,
                    gated,
                )
            )
        self.every = tuple(blocks)
        count = 0 if first is None else 1
        self.ungated, self.blocks = self.every[:count], self.every[count:]
        section = Section(graph.between(end, last), end, last)
        self.head = fixed(section, option=head, levels_in=bool(found))

    def begin(self, images: Tensor) -> Tensor:
        """What the first block that is decided for sees of normalised images (B, C, H, W)."""
        x = self.stem(images)
        for block in self.ungated:
            x = block.execute(x, block.options[0])
        return x

    def plain(self, backbone: nn.Module) -> nn.Module:
        """A plain network of a backbone's layers as they were before.

        Its own code is not run, since the layers may not be what that knew.
        """
        return TracedNetwork(backbone, self.structure.graph)

    def execute_calibrating(self, images: Tensor, gather: Gather) -> Tensor:
        """A static network's logits (B, N), gathering what calibration needs everywhere.

        See `RoutedBlock.calibrate`; what no gate decides for has its ranges already.
        """
        x = self.stem.calibrate(images, gather)
        for block in self.every:
            x = block.calibrate(x, block.options[0], gather)
        return self.head.calibrate(x, gather)

    def finish_calibration(self) -> None:
        """Stores what `execute_calibrating` gathered."""
        self.stem.finish_calibration()
        for block in self.every:
            block.finish_calibration(block.options[0])
        self.head.finish_calibration()

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Initialises what is always executed, on normalised images: steps and ranges."""
        if self.stream is None:
            if not self.every:
                self.head.observe(batches[0])
            return
        x = self.stem.observe(batches[0])
        seen: list[list[Tensor]] = [[] for _ in self.stream.steps]
        seen[0].append(thinned(x))
        for block in self.every:
            x = block.observe(x)
            seen[block.stage].append(thinned(x))
            if block.onward.section.nodes:
                x = block.onward.observe(x)
                stage = block.stage if block.onward.stage is None else block.onward.stage
                seen[stage].append(thinned(x))
        self.head.observe(x)
        self.stream.observe(seen)
        x = self.stem(batches[0])
        for block in self.ungated:
            x = block.calibrate(x, block.options[0], Gather.RANGES | Gather.STEPS)

    def described(self) -> list[dict[str, Any]]:
        """Every block, decided for or not and why, as a table's rows."""
        return self._rows


def _fitting(structure: Structure, spec: ModelSpec, kind: str) -> Structure:
    """A network's structure for what is to become of it.

    In an int8 stream a block whose sum can't be rounded to its levels is none: of a static network
    it is a part of what lies between blocks, within which values are floats.
    """
    static, first = len(spec.option_set) == 1, structure.first
    if not static:
        structure.require_blocks(kind)
    if spec.quant.stream == "float":
        if spec.option_set[-1].is_quantised:
            structure.require_blocks(kind)
        return structure
    faults = {block.name: _stream_fault(structure.graph, block) for block in structure.blocks}
    faults = {name: fault for name, fault in faults.items() if fault}
    if faults and not static:
        raise ConfigError(f"{next(iter(faults.values()))}: use quant.stream 'float'")
    if first is not None and _stream_fault(structure.graph, first):
        first = None  # it belongs to the stem
    kept = tuple(block for block in structure.blocks if block.name not in faults)
    return replace(structure, blocks=kept, refused={**structure.refused, **faults}, first=first)


def fixed_options(quant: QuantConfig) -> tuple[Option, Option, Option]:
    """The options of the stem, of all else that no gate decides for, and of the head."""
    if quant.stream == "float":
        return FULL, FULL, FULL
    return Option.parse(quant.stem), STREAM_OPTION, Option.parse(quant.head)


def _stages(
    graph: Graph, blocks: Sequence[Block], between: Sequence[Section]
) -> tuple[list[tuple[int, int]], list[bool]]:
    """The stages of an int8 stream, and whether values of each have both signs.

    A block without a projection gives values of the stage that it takes, so that it can hand them
    on as they are; everything else that computes something begins a stage.

    Returns:
        For each block the stage of what it gives and of what the next one takes; and of each stage
        whether it is signed. The first block takes values of stage 0.
    """
    signed = [not never_negative(graph, block.entry) for block in blocks[:1]]

    def stage_of(value: Node, begins: bool) -> int:
        negative = not never_negative(graph, value)
        if begins:
            signed.append(negative)
        signed[-1] = signed[-1] or negative
        return len(signed) - 1

    stages = []
    for block, section in zip(blocks, between, strict=True):
        identity = block.can_be_skipped and block.shortcut is None
        computes = not all(is_identity(node) for node in section.nodes)
        own = stage_of(block.output, not identity)
        stages.append((own, stage_of(section.output, computes)))
    return stages, signed


def _stream_fault(graph: Graph, block: Block) -> str:
    """What of a block rounding to levels cannot do; '' if it can do everything."""
    if not all(is_relu(node) for node in block.after):
        return (
            f"stream 'int8' takes sums that a ReLU follows, or nothing; that of {block.name} is "
            "followed by something else"
        )
    identity = block.can_be_skipped and block.shortcut is None
    if identity and block.after and not never_negative(graph, block.entry):
        return (
            "stream 'int8' has one grid for what a block takes and gives where its shortcut is the "
            f"identity; {block.name} takes values of both signs and gives what a ReLU does"
        )
    return ""


def _profile(
    graph: Graph, blocks: Sequence[Block], first: Block | None, quant: QuantConfig
) -> NetworkProfile:
    """What the parts cost; what lies between two blocks is a part of its own, always executed."""
    parts: list[BlockProfile] = []
    end, stem_macs = graph[0], 0
    stem, inside, head = (option.bits for option in fixed_options(quant))
    for block in blocks:
        between = graph.macs(graph.between(end, block.entry))
        if end is graph[0]:
            stem_macs = between
        elif between:
            name = f"before {block.name}"
            parts.append(BlockProfile(name, between, gated=False, fixed_bits=inside))
        parts.append(replace(_priced(graph, block), gated=block is not first, fixed_bits=inside))
        end = block.output
    head_macs = graph.macs(graph.between(end, graph[graph.output]))
    return NetworkProfile(stem_macs, tuple(parts), head_macs, stem, head)


def _priced(graph: Graph, block: Block) -> BlockProfile:
    """What a block costs. The little in a branch that no option changes counts as always done."""
    always = graph.macs(node for node in block.branch if not quantisable(node))
    shortcut = graph.macs(block.shortcut or ())
    return BlockProfile(block.name, graph.macs(block.branch) - always, shortcut + always)


def _rows(structure: Structure, net: nn.Module) -> list[dict[str, Any]]:
    graph, by_name = structure.graph, {block.name: block for block in structure.blocks}
    parts: dict[str, Sequence[Node]] = {name: block.nodes for name, block in by_name.items()}
    for name in structure.refused:
        path = name.partition(":")[0]
        parts[name] = [node for node in graph.data if within(node, path)]
    modules = dict(net.named_modules())
    ordered = sorted(parts, key=lambda name: min((n.index for n in parts[name]), default=0))
    return [
        {
            "name": name,
            "kind": type(modules.get(name.partition(":")[0], net)).__name__,
            "macs": graph.macs(parts[name]),
            "skippable": name in by_name and by_name[name].can_be_skipped,
            "reason": structure.refused.get(name, ""),
        }
        for name in ordered
    ]
