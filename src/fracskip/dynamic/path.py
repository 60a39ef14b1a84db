"""A network's forward pass on one path for all images, where the path is data and not control flow.

`DynamicNetwork.forward` asks Python which option a block executes. A GPU that is to be handed a
whole training step at once (a CUDA graph, `training.captured`) can't ask: its kernels and addresses
are fixed, only values change. So here every block selects its option's weights, steps and
statistics by index and executes once, whatever the index is; a skipped block executes too, and its
result is left out.

Shapes: L gated blocks, K options, R executed ones, O output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.dynamic.block import STREAM_OPTIONS, FractionalBlock
from fracskip.dynamic.network import DynamicNetwork
from fracskip.dynamic.selection import (
    ALWAYS,
    Piece,
    PlainUnit,
    SelectingUnit,
    UnitGroup,
    levels,
    levels_of_sum,
    run_pass,
)
from fracskip.quant import fused
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import SMALLEST_STEP
from fracskip.quant.stream import STREAM_BOUNDS


class _Block:
    """A block's branch and shortcut."""

    def __init__(self, block: FractionalBlock, index: int) -> None:
        self.stage, self.index = block.stage, index
        self.can_skip = block.options.can_skip
        self.units = [
            SelectingUnit(conv, norm, block.options, index, positive=position > 0)
            for position, (conv, norm) in enumerate(block.units)
        ]
        self.narrow: SelectingUnit | None = None
        self.plain: PlainUnit | None = None
        if block.projection is not None:
            conv, norm = block.projection
            if isinstance(conv, FractionalConv2d) and isinstance(norm, FractionalBatchNorm2d):
                self.narrow = SelectingUnit(conv, norm, STREAM_OPTIONS, ALWAYS, positive=False)
            else:
                self.plain = PlainUnit(conv, norm)


class PathForward:
    """A network's logits for images that all take one path, the path being data.

    BatchNorm statistics are those that the network has now.

    Args:
        net: A network with 'modern' quantisation.

    Attributes:
        pieces: The parameters that `__call__` wants, piece by piece.

    Raises:
        ConfigError: if the quantisation is another, or it is no CIFAR ResNet.
    """

    def __init__(self, net: DynamicNetwork) -> None:
        self._net = net
        trunk = net.cifar_trunk()
        backbone = trunk.backbone
        self._head = backbone.fc
        self._stem = PlainUnit(backbone.conv1, backbone.bn1)
        self._blocks = [_Block(block, index) for index, block in enumerate(trunk.blocks)]
        self._first: list[PlainUnit] = []
        if trunk.first_block is not None:
            self._blocks.insert(0, _Block(trunk.first_block, ALWAYS))
        else:
            (_, first), *_ = backbone.named_blocks()
            self._first = [
                PlainUnit(first.get_submodule(conv), first.get_submodule(norm))
                for conv, norm in first.branch
            ]
        self._units = [
            unit
            for block in self._blocks
            for unit in (*block.units, *([block.narrow] if block.narrow else []))
        ]
        parts: list[PlainUnit | SelectingUnit] = [self._stem, *self._first]
        parts += [block.plain for block in self._blocks if block.plain]
        self._where: dict[int, slice] = {}
        self.pieces: list[Piece] = []
        for part in (*parts, *self._units):
            self._where[id(part)] = slice(len(self.pieces), len(self.pieces) + len(part.pieces))
            self.pieces += part.pieces
        fc = (backbone.fc.weight, backbone.fc.bias)
        self.pieces += [Piece((cast(nn.Parameter, value),)) for value in fc]
        if net.stream is not None:
            self.pieces.append(Piece((net.stream.steps,)))
        tables = [unit.table for unit in self._units]
        wide, high = max(t.shape[1] for t in tables), max(t.shape[0] for t in tables)
        device = backbone.fc.weight.device
        padded = [F.pad(t, (0, wide - t.shape[1], 0, high - t.shape[0])) for t in tables]
        self._tables = torch.stack(padded).to(device)
        of = {id(unit): block.index for block in self._blocks for unit in block.units}
        # What every path executes stands behind the gated blocks, and has one option.
        blocks = [of.get(id(unit), ALWAYS) % (len(net.blocks) + 1) for unit in self._units]
        self._of_block = torch.tensor(blocks, device=device)
        self._each = torch.arange(len(self._units), device=device)
        kinds: dict[Any, list[int]] = {}
        for index, unit in enumerate(self._units):
            kinds.setdefault(unit.kind, []).append(index)
        self._groups = [
            (UnitGroup([self._units[index] for index in members]), torch.tensor(members).to(device))
            for members in kinds.values()
        ]
        self._stream_numbers = torch.tensor([*STREAM_BOUNDS, 0.0, 0.0, 0.0], device=device)
        self._stream_factor = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0], device=device)

    def __call__(self, values: Sequence[Tensor], images: Tensor, path: Tensor) -> Tensor:
        """The logits (B, N).

        Args:
            values: Of each piece, flat: what was taken of its parameters.
            images: Normalised (B, C, H, W).
            path: Index of each gated block's option (L).
        """
        net = self._net
        rows = self._tables[self._each, F.pad(path, (0, 1))[self._of_block]]
        taken = {key: values[where] for key, where in self._where.items()}
        ready: dict[int, Any] = {}
        for group, members in self._groups:
            found = group.fold([taken[id(unit)] for unit in group.units], rows[members])
            ready.update(zip(map(id, group.units), found, strict=True))
        steps = None
        if net.stream is not None:
            steps = values[-1]
            values = values[:-1]
        skipped = path == 0

        def emit(y: Tensor, stage: int, shortcut: Tensor | None = None) -> Tensor:
            if steps is None:
                return F.relu(y if shortcut is None else y + shortcut)
            step = steps[stage].clamp_min(SMALLEST_STEP)
            numbers = self._stream_numbers + self._stream_factor * fused.step_factor(
                y.numel(), STREAM_BOUNDS
            )
            if shortcut is None:
                return run_pass(levels, y, step, numbers, into=torch.float32)
            return run_pass(levels_of_sum, y, shortcut, step, numbers)

        def run(unit: SelectingUnit, x: Tensor) -> Tensor:
            return unit.execute(x, ready[id(unit)])

        x = F.relu(self._stem.execute(images, taken[id(self._stem)]))
        if steps is not None:
            x = emit(x, 0)
        if self._first:
            y = x
            for position, plain in enumerate(self._first):
                y = plain.execute(F.relu(y) if position else y, taken[id(plain)])
            x = F.relu(y + x)
        for block in self._blocks:
            y = x
            for unit in block.units:
                y = run(unit, y)
            shortcut = x
            if block.narrow is not None:
                shortcut = run(block.narrow, x)
            elif block.plain is not None:
                shortcut = block.plain.execute(x, taken[id(block.plain)])
            leaves = block.can_skip and block.index != ALWAYS
            if leaves and shortcut is not x:
                y = y.masked_fill(skipped[block.index], 0.0)
            out = emit(y, block.stage, shortcut)
            if leaves and shortcut is x:
                out = torch.where(skipped[block.index], x, out)
            x = out
        *_, weight, bias = values
        return F.linear(x.mean((2, 3)), weight.view_as(self._head.weight), bias)
