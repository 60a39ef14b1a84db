"""A network's way from images to logits, block by block: of a CIFAR ResNet or of a traced network.

Shapes: B images, C channels, H height, W width, N classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fracskip.config import ModelSpec
from fracskip.cost.profile import BlockProfile, NetworkProfile
from fracskip.dynamic.block import STREAM_OPTION, STREAM_OPTIONS, FractionalBlock, stages_of
from fracskip.dynamic.routing import RoutedBlock
from fracskip.dynamic.traced import FixedSteps, Section, TracedBlock
from fracskip.errors import ConfigError
from fracskip.models.graph import Graph, Node
from fracskip.models.resnet import CifarResNet, profile_backbone
from fracskip.models.steps import TracedNetwork
from fracskip.models.structure import (
    FIRST,
    Block,
    Structure,
    find_blocks,
    hands_on,
    is_relu,
    never_negative,
    quantisable,
    within,
)
from fracskip.quant.quantisers import thinned
from fracskip.quant.stream import StreamQuantiser


class Trunk(Protocol):
    """What a dynamic network asks of its backbone.

    Attributes:
        profile: What its parts cost, gates not counted.
        stream: What quantises the stream between blocks, if anything does.
    """

    profile: NetworkProfile
    stream: StreamQuantiser | None

    @property
    def blocks(self) -> Sequence[RoutedBlock]:
        """Those that are decided for, in order of execution."""
        ...

    def begin(self, images: Tensor) -> Tensor:
        """What the first of them sees of normalised images (B, C, H, W)."""
        ...

    def head(self, x: Tensor) -> Tensor:
        """The logits (B, N) from what the last of them gives."""
        ...

    def plain(self, backbone: nn.Module) -> nn.Module:
        """A plain network of the backbone's layers as they were before."""
        ...

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Initialises what lies before and between the blocks, on normalised images."""
        ...

    def described(self) -> list[dict[str, Any]]:
        """Every block, decided for or not and why, as a table's rows."""
        ...


def create_trunk(backbone: nn.Module, spec: ModelSpec, structure: Structure | None = None) -> Trunk:
    """Makes a network's blocks fractional, in place.

    Args:
        backbone: The network.
        spec: What becomes of it.
        structure: Its blocks, where they are known; a CIFAR ResNet's are.

    Raises:
        ConfigError: if it has none.
    """
    if isinstance(backbone, CifarResNet):
        return CifarTrunk(backbone, spec)
    return TracedTrunk(backbone, spec, structure)


class CifarTrunk:
    """A CIFAR ResNet; the stream between its blocks may be of 8-bit integers.

    The first block is always executed: in full, like stem and classifier, or at 8 bits.

    Attributes:
        stages: The stage of each block's output, the first block included.
        first_block: The first block, where the stream is int8.
        backbone: The network.
    """

    def __init__(self, backbone: CifarResNet, spec: ModelSpec) -> None:
        self.backbone = backbone
        self.profile = profile_backbone(backbone, spec.image)
        named = backbone.named_blocks()
        self.stages = stages_of([block for _, block in named])
        self.stream: StreamQuantiser | None = None
        self.first_block: FractionalBlock | None = None
        if spec.quant.stream == "int8":
            self.stream = StreamQuantiser(self.stages[-1] + 1)
            self.first_block = FractionalBlock(
                *named[0], STREAM_OPTIONS, spec.quant, self.stream, self.stages[0]
            )
            narrow = [replace(b, fixed_bits=STREAM_OPTION.bits) for b in self.profile.blocks]
            self.profile = replace(self.profile, blocks=tuple(narrow))
        self.blocks = tuple(
            FractionalBlock(name, block, spec.option_set, spec.quant, self.stream, stage)
            for (name, block), stage in zip(named[1:], self.stages[1:], strict=True)
        )

    def stem(self, images: Tensor) -> Tensor:
        """What the first block sees."""
        x = self.backbone.stem(images)
        return x if self.stream is None else self.stream(x, 0)

    def begin(self, images: Tensor) -> Tensor:
        """See `Trunk.begin`."""
        x = self.stem(images)
        if self.first_block is not None:
            return self.first_block.execute(x, STREAM_OPTION)
        (_, first), *_ = self.backbone.named_blocks()
        out: Tensor = first(x)
        return out

    def head(self, x: Tensor) -> Tensor:
        """See `Trunk.head`."""
        return self.backbone.head(x)

    def plain(self, backbone: nn.Module) -> nn.Module:
        """See `Trunk.plain`."""
        return backbone

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """See `Trunk.calibrate`: the stream's steps, then the first block's ranges."""
        if self.stream is None or self.first_block is None:
            return
        self.stream.observe(self._flowing(batches[0]))
        stem = self.stem(batches[0])
        self.first_block.calibrate(stem, STREAM_OPTION, observe=True, estimate=False)

    def _flowing(self, images: Tensor) -> list[list[Tensor]]:
        """What the plain backbone's stream holds, stage by stage: a sample of each output."""
        x = self.backbone.stem(images)
        seen: list[list[Tensor]] = [[] for _ in range(self.stages[-1] + 1)]
        seen[0].append(thinned(x))
        for (_, block), stage in zip(self.backbone.named_blocks(), self.stages, strict=True):
            x = block(x)
            seen[stage].append(thinned(x))
        return seen

    def described(self) -> list[dict[str, Any]]:
        """See `Trunk.described`."""
        return [
            {
                "name": block.name,
                "kind": "BasicBlock",
                "macs": block.branch_macs,
                "skippable": block.gated,
                "reason": "" if block.gated else FIRST,
            }
            for block in self.profile.blocks
        ]


class TracedTrunk:
    """Any network that can be traced.

    What lies before the first block that is decided for, between two of them and behind the last is
    always executed: in full, or at 8 bits where the stream between blocks is of 8-bit integers. All
    projections are, too.

    Attributes:
        structure: Where its blocks are.
        backbone: The network.
        begins: What lies before the first of them.
        goes_on: What lies between each of them and the next; nothing after the last.
        ends: What lies behind the last.
        stages: Of an int8 stream, for each block: the stage of what it gives, and of what the next
            one takes. What the first one takes is of stage 0.
    """

    def __init__(
        self, backbone: nn.Module, spec: ModelSpec, structure: Structure | None = None
    ) -> None:
        self._image = (spec.image.channels, *spec.image.size)
        if structure is None:
            structure = find_blocks(backbone, self._image, spec.model.blocks or None)
        for module in backbone.modules():
            if getattr(module, "inplace", False):  # a dropout's
                # What a block is given, its other options need as well.
                module.inplace = False  # type: ignore[assignment]
        self.structure, self.backbone = structure, backbone
        self._rows = _rows(structure, backbone)
        self.profile = _profile(structure)
        graph, found = structure.graph, structure.blocks
        last = graph[graph.output]
        untils = [*(block.entry for block in found[1:]), found[-1].output]
        start, entry, end = graph[0], found[0].entry, found[-1].output
        self.begins = Section(graph.between(start, entry), start, entry)
        self.goes_on = tuple(
            Section(graph.between(block.output, until), block.output, until)
            for block, until in zip(found, untils, strict=True)
        )
        self.ends = Section(graph.between(end, last), end, last)
        self.stages, signed = _stages(graph, found, self.goes_on)
        self.stream: StreamQuantiser | None = None
        if spec.quant.stream == "int8":
            _check_stream(graph, found)
            self.stream = StreamQuantiser(len(signed), signed)
            narrow = [replace(b, fixed_bits=STREAM_OPTION.bits) for b in self.profile.blocks]
            self.profile = replace(
                self.profile, blocks=tuple(narrow), fixed_bits=STREAM_OPTION.bits
            )
        fixed = functools.partial(FixedSteps, backbone, graph, quant=spec.quant, stream=self.stream)
        self._begin = fixed(self.begins, stage=0, levels_in=False)
        blocks = []
        for block, section, (own, onward) in zip(found, self.goes_on, self.stages, strict=True):
            between = fixed(section, stage=onward if onward != own else None)
            options = spec.option_set
            blocks.append(
                TracedBlock(backbone, graph, block, options, spec.quant, between, self.stream, own)
            )
        self.blocks = tuple(blocks)
        self._head = fixed(self.ends)

    def begin(self, images: Tensor) -> Tensor:
        """See `Trunk.begin`.

        Raises:
            ConfigError: for images of another size than the network was traced on.
        """
        shape = tuple(images.shape[1:])
        if shape != self._image:
            raise ConfigError(
                f"images of shape {shape} do not fit: the network was traced on {self._image}, and "
                "what it computes may depend on that; resize them, or convert it again with an "
                "example_input of their size"
            )
        return self._begin(images)

    def head(self, x: Tensor) -> Tensor:
        """See `Trunk.head`."""
        return self._head(x)

    def plain(self, backbone: nn.Module) -> nn.Module:
        """See `Trunk.plain`: its own code is not run, since the layers may not be what it knew."""
        return TracedNetwork(backbone, self.structure.graph)

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """See `Trunk.calibrate`: the stream's steps, and the ranges of what is always executed."""
        if self.stream is None:
            return
        seen: list[list[Tensor]] = [[] for _ in self.stream.steps]
        x = self._begin.observe(batches[0])
        seen[0].append(thinned(x))
        for block, (own, onward) in zip(self.blocks, self.stages, strict=True):
            x = block.observe(x)
            seen[own].append(thinned(x))
            x = block.onward.observe(x)
            seen[onward].append(thinned(x))
        self._head.observe(x)
        self.stream.observe(seen)

    def described(self) -> list[dict[str, Any]]:
        """See `Trunk.described`."""
        return self._rows


def _stages(
    graph: Graph, blocks: Sequence[Block], goes_on: Sequence[Section]
) -> tuple[list[tuple[int, int]], list[bool]]:
    """The stages of an int8 stream, and whether values of each have both signs.

    A block without a projection gives values of the stage that it takes, so that it can hand them
    on as they are; everything else that computes something begins a stage.

    Returns:
        For each block the stage of what it gives and of what the next one takes; and of each stage
        whether it is signed. The first block takes values of stage 0.
    """
    signed = [not never_negative(graph, blocks[0].entry)]

    def stage_of(value: Node, begins: bool) -> int:
        negative = not never_negative(graph, value)
        if begins:
            signed.append(negative)
        signed[-1] = signed[-1] or negative
        return len(signed) - 1

    stages = []
    for block, section in zip(blocks, goes_on, strict=True):
        identity = block.can_be_skipped and block.shortcut is None
        computes = not all(hands_on(node) for node in section.nodes)
        own = stage_of(block.output, not identity)
        stages.append((own, stage_of(section.output, computes)))
    return stages, signed


def _check_stream(graph: Graph, blocks: Sequence[Block]) -> None:
    """Refuses what rounding to levels cannot end."""
    advice = "use quant.stream 'float'"
    for block in blocks:
        if not all(is_relu(node) for node in block.after):
            raise ConfigError(
                f"stream 'int8' takes sums that a ReLU follows, or nothing; that of {block.name} "
                f"is followed by something else: {advice}"
            )
        identity = block.can_be_skipped and block.shortcut is None
        if identity and block.after and not never_negative(graph, block.entry):
            raise ConfigError(
                f"stream 'int8' has one grid for what a block takes and gives where its shortcut "
                f"is the identity; {block.name} takes values of both signs and gives what a ReLU "
                f"does: {advice}"
            )


def _profile(structure: Structure) -> NetworkProfile:
    """What the parts cost; what lies between two blocks is a part of its own, always executed."""
    graph, parts = structure.graph, []
    end = graph[0]
    for index, block in enumerate(structure.blocks):
        between = graph.macs(graph.between(end, block.entry))
        if index == 0:
            stem = between
        elif between:
            parts.append(BlockProfile(f"before {block.name}", between, gated=False))
        parts.append(_priced(graph, block))
        end = block.output
    head = graph.macs(graph.between(end, graph[graph.output]))
    return NetworkProfile(stem, tuple(parts), head)


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
