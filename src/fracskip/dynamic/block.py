"""A residual block of convolutions, norms and ReLUs, on a float stream or one of 8-bit integers.

A `FractionalBlock` converts a residual block's branch in place (parameter names survive) and
executes it at any option.

Skipping is executing with a residual of zero: the block's output is its shortcut after the
block's last ReLU. Identity shortcuts carry a ReLU's output, so for them this is the input itself.

Where the stream between blocks is of 8-bit integers (`quant.stream`), rounding to its grid takes
the place of that last ReLU, and a skipped block hands its input on level by level.

Shapes: B images, K options, C channels, H height, W width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import QuantConfig
from fracskip.dynamic.routing import RoutedBlock
from fracskip.options import Option, OptionSet
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d, take_statistics
from fracskip.quant.quantisers import STREAM_BITS
from fracskip.quant.stream import StreamQuantiser

STREAM_OPTION = Option(STREAM_BITS)
STREAM_OPTIONS = OptionSet((STREAM_OPTION,))


class ResidualBlock(Protocol):
    """What a block must offer to be made fractional: relu(shortcut(x) + branch(x))."""

    @property
    def branch(self) -> tuple[tuple[str, str], ...]:
        """Attribute names of the branch's (convolution, norm) pairs; ReLUs stand in between."""
        ...

    @property
    def projection(self) -> tuple[str, str] | None:
        """Paths of the shortcut's (convolution, norm); None where it is the identity."""
        ...

    def shortcut(self, x: Tensor) -> Tensor:
        """The identity or a projection."""
        ...


def stages_of(blocks: Sequence[nn.Module]) -> tuple[int, ...]:
    """The stage of each block's output: a block with a projection starts the next one."""
    starts = [cast(ResidualBlock, block).projection is not None for block in blocks]
    return tuple(itertools.accumulate(map(int, starts)))


_Unit = tuple[FractionalConv2d, FractionalBatchNorm2d]


def _convert(
    block: nn.Module,
    names: tuple[str, str],
    options: OptionSet,
    quant: QuantConfig,
    levels_in: bool,
) -> _Unit:
    conv, norm = (block.get_submodule(name) for name in names)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    unit = (
        FractionalConv2d.of(conv, options, quant.scheme, levels_in, quant.weights == "own"),
        FractionalBatchNorm2d.of(norm, options, shared=quant.scheme == "paper"),
    )
    for name, module in zip(names, unit, strict=True):
        block.set_submodule(name, module)
    return unit


class FractionalBlock(RoutedBlock):
    """Executes one residual block at any option of a set.

    The module itself stays where it is in the backbone; this object only steers it.

    Args:
        name: The block's module path.
        block: The block; its branch's convolutions and norms are converted in place.
        options: What may be chosen.
        quant: How it is quantised.
        stream: What quantises the stream; None leaves it in float. On an int8 stream a projection
            shortcut is converted too and always runs at 8 bits.
        stage: The stage of the block's output.
    """

    def __init__(
        self,
        name: str,
        block: nn.Module,
        options: OptionSet,
        quant: QuantConfig,
        stream: StreamQuantiser | None = None,
        stage: int = 0,
    ) -> None:
        self.name = name
        self.options = options
        self._module, self._block = block, cast(ResidualBlock, block)
        self.hands_on = self._block.projection is None
        self._stream, self._stage = stream, stage
        self._units: list[_Unit] = []
        for position, names in enumerate(self._block.branch):
            on_stream = stream is not None and position == 0
            self._units.append(_convert(block, names, options, quant, on_stream))
        projection = self._block.projection
        self._projection: _Unit | None = None
        if stream is not None and projection is not None:
            self._projection = _convert(block, projection, STREAM_OPTIONS, quant, True)
        self.in_channels = self._units[0][0].in_channels

    @property
    def units(self) -> tuple[_Unit, ...]:
        """The branch's convolutions, each with its norm."""
        return tuple(self._units)

    @property
    def projection(self) -> tuple[nn.Module, nn.Module] | None:
        """The shortcut's convolution and norm; None where it is the identity."""
        paths = self._block.projection
        if paths is None:
            return None
        conv, norm = (self._module.get_submodule(path) for path in paths)
        return conv, norm

    @property
    def stage(self) -> int:
        """The stage of the block's output."""
        return self._stage

    def _shortcut(self, x: Tensor) -> Tensor:
        if self._projection is None:
            return self._block.shortcut(x)
        conv, norm = self._projection
        return conv.execute(x, STREAM_OPTION, *norm.folded(STREAM_OPTION))

    def _emit(self, y: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self._stream is not None:
            return self._stream(y, self._stage, shortcut)  # type: ignore[no-any-return]
        return F.relu(y if shortcut is None else y + shortcut)

    def _residual(self, x: Tensor, option: Option) -> Tensor:
        for position, (conv, norm) in enumerate(self._units):
            if position and not conv.absorbs_relu(option):
                x = F.relu(x)
            x = conv.execute(x, option, *norm.folded(option))
        return x

    def _skip(self, x: Tensor) -> Tensor:
        shortcut = self._shortcut(x)
        return x if shortcut is x else self._emit(shortcut)

    def _execute(self, x: Tensor, option: Option) -> Tensor:
        if option.is_skip:
            return self._skip(x)
        return self._emit(self._residual(x, option), self._shortcut(x))

    @torch.no_grad()
    def calibrate(self, x: Tensor, option: Option, observe: bool, estimate: bool) -> Tensor:
        """See `RoutedBlock.calibrate`."""
        if observe and self._projection is not None:
            self._projection[0].observe(x, STREAM_OPTION, weights=not estimate)
        shortcut = self._shortcut(x)
        for position, (conv, norm) in enumerate(self._units):
            x = F.relu(x) if position else x
            if observe:
                conv.observe(x, option, weights=not estimate)
            if estimate and norm.owns_statistics(option):
                x = norm.estimate(conv.execute(x, option), option)
            else:
                x = conv.execute(x, option, *norm.folded(option))
        return self._emit(x, shortcut)

    def finish_calibration(self, option: Option) -> None:
        """See `RoutedBlock.finish_calibration`."""
        for _, norm in self._units:
            norm.finish_estimate(option)

    @torch.no_grad()
    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """See `RoutedBlock.reestimate`."""
        current = [group for group in groups if len(group)]
        for position, (conv, norm) in enumerate(self._units):
            if position:
                current = [F.relu(x) for x in current]
            for x in current:
                norm.estimate(conv.execute(x, option), option)
            norm.finish_estimate(option)
            current = [conv.execute(x, option, *norm.folded(option)) for x in current]

    @torch.no_grad()
    def reestimate_shortcut(self, batches: Sequence[Tensor]) -> None:
        """See `RoutedBlock.reestimate_shortcut`."""
        if self._projection is not None:
            conv, norm = self._projection
            for x in batches:
                norm.estimate(conv.execute(x, STREAM_OPTION), STREAM_OPTION)
            norm.finish_estimate(STREAM_OPTION)
        elif self._block.projection is not None:
            path, norm_path = self._block.projection
            projection = cast(nn.Conv2d, self._module.get_submodule(path))
            plain = cast(nn.BatchNorm2d, self._module.get_submodule(norm_path))
            z = torch.cat([projection(x) for x in batches])
            take_statistics(plain, z)
