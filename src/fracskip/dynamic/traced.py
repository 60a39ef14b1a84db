"""A block of any traced network, at any option.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.config import QuantConfig
from fracskip.dynamic.block import STREAM_OPTION, STREAM_OPTIONS
from fracskip.dynamic.routing import RoutedBlock
from fracskip.dynamic.steps import Arguments, FractionalSteps
from fracskip.models.graph import Graph, Node
from fracskip.models.steps import Step, Steps, plainly
from fracskip.models.structure import Block, is_relu, never_negative
from fracskip.options import FULL_BITS, Option, OptionSet
from fracskip.quant.normalisation import take_statistics
from fracskip.quant.stream import StreamQuantiser

FULL = Option(FULL_BITS)


@dataclass(frozen=True)
class Section:
    """Steps between two values.

    Attributes:
        nodes: Its steps, in order.
        entry: The value it begins with.
        output: The value it ends with.
    """

    nodes: tuple[Node, ...]
    entry: Node
    output: Node


class FixedSteps:
    """What is always executed: in full, or in an int8 stream at 8 bits.

    Args:
        net: The network; with a stream, its layers are converted in place.
        graph: Its graph.
        section: What is executed.
        quant: How.
        stream: The stream, if it is int8.
        stage: Of what is given; None where that is no part of the stream.
        levels_in: Whether what is taken is a part of it.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        section: Section,
        quant: QuantConfig,
        stream: StreamQuantiser | None = None,
        stage: int | None = None,
        levels_in: bool = True,
    ) -> None:
        self._stream, self._stage = stream, stage
        nodes, entry, output = section.nodes, section.entry, section.output
        self._steps: Steps | FractionalSteps = (
            Steps(net, graph, nodes, [entry], output)
            if stream is None
            else FractionalSteps(net, graph, nodes, entry, output, STREAM_OPTIONS, quant, levels_in)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), or what the network ends with."""
        if isinstance(self._steps, Steps):
            out: Tensor = self._steps(x)
            return out
        y = self._steps(x, STREAM_OPTION)
        return y if self._stage is None else self._stream(y, self._stage)  # type: ignore[misc]

    def observe(self, x: Tensor) -> Tensor:
        """Initialises its ranges on what the plain network's values are, and gives the next."""
        if isinstance(self._steps, Steps):
            return self(x)
        return self._steps.observe(x, STREAM_OPTION)

    @torch.no_grad()
    def reestimate(self, batches: Sequence[Tensor]) -> None:
        """Estimates its BatchNorms' statistics anew, on all images (B, C, H, W)."""
        if isinstance(self._steps, FractionalSteps):
            self._steps.reestimate(batches, STREAM_OPTION)
            return

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                take_statistics(module, torch.cat([z for (z,) in arguments]))
            return plainly(step, arguments)

        self._steps.run([(x,) for x in batches], layer)


class TracedBlock(RoutedBlock):
    """Executes one block of a traced network.

    Args:
        net: The network; the layers of the block's branch are converted in place, in an int8 stream
            all of them.
        graph: Its graph.
        block: Where the block is in it.
        options: What may be chosen.
        quant: How it is quantised.
        onward: What lies between this block and the next.
        stream: The stream between blocks, if it is int8.
        stage: Of what the block gives, in that stream.

    Attributes:
        skips_for_free: Whether a skipped block gives exactly what it sees.
        onward: What lies between this block and the next.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        block: Block,
        options: OptionSet,
        quant: QuantConfig,
        onward: FixedSteps,
        stream: StreamQuantiser | None = None,
        stage: int = 0,
    ) -> None:
        self.name, self.options = block.name, options
        self.in_channels = block.entry.shape[1]
        self.can_be_skipped = block.can_be_skipped
        self.hands_on = block.can_be_skipped and block.shortcut is None
        relu = all(is_relu(node) for node in block.after)
        stays = self.hands_on and relu
        self.skips_for_free = stays and (not block.after or never_negative(graph, block.entry))
        self._stream, self._stage = stream, stage
        self._branch = FractionalSteps(
            net,
            graph,
            block.branch,
            block.entry,
            block.branch[-1],
            options,
            quant,
            levels_in=stream is not None,
        )
        ways = block.shortcut or ()
        short = Section(ways, block.entry, ways[-1] if ways else block.entry)
        self._shortcut = FixedSteps(net, graph, short, quant, stream if ways else None)
        total = block.sum or block.output
        self._after = Steps(net, graph, block.after, [total], block.output)
        self.onward = onward

    # -- execution -------------------------------------------------------------------------------

    def _execute(self, x: Tensor, option: Option) -> Tensor:
        return self._skip(x) if option.is_skip else self._joined(x, self._branch(x, option))

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        return self._emit(y, self._shortcut(x)) if self.can_be_skipped else self._emit(y)

    def _emit(self, y: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self._stream is not None:  # rounding to its levels does what a ReLU would
            return self._stream(y, self._stage, shortcut)  # type: ignore[no-any-return]
        out: Tensor = self._after(y if shortcut is None else y + shortcut)
        return out

    def _skip(self, x: Tensor) -> Tensor:
        assert self.can_be_skipped, f"{self.name} has no shortcut"
        return x if self.skips_for_free else self._emit(self._shortcut(x))

    def _onward(self, x: Tensor) -> Tensor:
        return self.onward(x)

    # -- statistics ------------------------------------------------------------------------------

    def observe(self, x: Tensor) -> Tensor:
        """Initialises the ranges of what no option changes; what the plain network's block gives.

        Args:
            x: What the plain network's block sees, (B, C, H, W).
        """
        y = self._branch(x, FULL)
        out: Tensor = self._after(y + self._shortcut.observe(x)) if self.can_be_skipped else y
        return out

    @torch.no_grad()
    def calibrate(self, x: Tensor, option: Option, observe: bool, estimate: bool) -> Tensor:
        """See `RoutedBlock.calibrate`."""
        return self._onward(self._joined(x, self._branch.calibrate(x, option, observe, estimate)))

    def finish_calibration(self, option: Option) -> None:
        """See `RoutedBlock.finish_calibration`."""
        self._branch.finish_calibration(option)

    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """See `RoutedBlock.reestimate`."""
        self._branch.reestimate(groups, option)

    def reestimate_shortcut(self, batches: Sequence[Tensor]) -> None:
        """See `RoutedBlock.reestimate_shortcut`."""
        self._shortcut.reestimate(batches)
