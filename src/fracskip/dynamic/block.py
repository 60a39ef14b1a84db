"""One block of a network, at any option.

Skipping is executing with a residual of zero: the block's output is its shortcut, after what
follows the sum. Where the stream between blocks is of 8-bit integers (`quant.stream`), rounding to
its levels takes the place of the ReLU after the sum, and a block that is skipped gives its input
level by level.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fracskip.config import QuantConfig
from fracskip.dynamic.fixed import FULL, FixedSteps, Section
from fracskip.dynamic.routing import Gather, RoutedBlock
from fracskip.dynamic.steps import FractionalSteps
from fracskip.models.graph import Graph
from fracskip.models.steps import Steps
from fracskip.models.structure import Block, is_relu, never_negative
from fracskip.options import Option, OptionSet
from fracskip.quant.stream import StreamQuantiser


class FractionalBlock(RoutedBlock):
    """Executes one block of a network.

    The layers themselves stay where they are in the network; this object only steers them.

    Args:
        net: The network; the layers of the block's branch are converted in place, unless the block
            is always executed in full, and so are its shortcut's where that is quantised.
        graph: Its graph.
        block: Where the block is in it.
        options: What may be chosen: one option for a block that no gate decides for.
        quant: How it is quantised.
        shortcut: The option at which a projection is executed.
        onward: What lies between this block and the next.
        stream: The stream between blocks, if it is int8.
        stage: Of what the block gives, in that stream.
        gated: Whether a gate decides for it.

    Attributes:
        block: Where the block is in the graph.
        stage: Of what it gives, in an int8 stream.
        shortcut_option: The option at which a projection is executed.
        skip_is_identity: Whether a skipped block gives exactly what it sees.
        onward: What lies between this block and the next.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        block: Block,
        options: OptionSet,
        quant: QuantConfig,
        shortcut: Option,
        onward: FixedSteps,
        stream: StreamQuantiser | None = None,
        stage: int = 0,
        gated: bool = True,
    ) -> None:
        self.name, self.options, self.block = block.name, options, block
        self.stage, self.shortcut_option, self.onward = stage, shortcut, onward
        self.in_channels = block.entry.shape[1]
        self.can_be_skipped = block.can_be_skipped
        self.identity_shortcut = block.can_be_skipped and block.shortcut is None
        relu = all(is_relu(node) for node in block.after)
        stays = self.identity_shortcut and relu
        self.skip_is_identity = stays and (not block.after or never_negative(graph, block.entry))
        self._stream = stream
        converted = options if gated or not options[-1].is_full else None
        self._branch = FractionalSteps(
            net, graph, block.branch, block.entry, block.branch[-1], converted, quant,
            levels_in=stream is not None,
        )  # fmt: skip
        ways = block.shortcut or ()
        short = Section(ways, block.entry, ways[-1] if ways else block.entry)
        self._shortcut = FixedSteps(net, graph, short, quant, shortcut)
        self._after = Steps(net, graph, block.after, [block.sum or block.output], block.output)

    # -- execution -------------------------------------------------------------------------------

    def _execute(self, x: Tensor, option: Option) -> Tensor:
        return self._skip(x) if option.is_skip else self._joined(x, self._branch(x, option))

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        return self._emit(y, self._shortcut(x)) if self.can_be_skipped else self._emit(y)

    def _emit(self, y: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self._stream is not None:  # rounding to its levels does what a ReLU would
            return self._stream(y, self.stage, shortcut)  # type: ignore[no-any-return]
        out: Tensor = self._after(y if shortcut is None else y + shortcut)
        return out

    def _skip(self, x: Tensor) -> Tensor:
        assert self.can_be_skipped, f"{self.name} has no shortcut"
        return x if self.skip_is_identity else self._emit(self._shortcut(x))

    def _onward(self, x: Tensor) -> Tensor:
        return self.onward(x)

    # -- statistics ------------------------------------------------------------------------------

    def observe(self, x: Tensor) -> Tensor:
        """Initialises the ranges of a projection; gives what the plain network's block does.

        Args:
            x: What the plain network's block sees, (B, C, H, W).
        """
        y = self._branch(x, FULL)
        out: Tensor = self._after(y + self._shortcut.observe(x)) if self.can_be_skipped else y
        return out

    @torch.no_grad()
    def calibrate(self, x: Tensor, option: Option, gather: Gather) -> Tensor:
        """See `RoutedBlock.calibrate`."""
        y = self._branch.calibrate(x, option, gather)
        beside = gather if len(self.options) == 1 else Gather.NOTHING
        if self.can_be_skipped:
            y = self._emit(y, self._shortcut.calibrate(x, beside))
        else:
            y = self._emit(y)
        return self.onward.calibrate(y, beside)

    def finish_calibration(self, option: Option) -> None:
        """See `RoutedBlock.finish_calibration`."""
        for steps in (self._shortcut, self.onward):
            steps.finish_calibration()
        self._branch.finish_calibration(option)

    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """See `RoutedBlock.reestimate`."""
        self._branch.reestimate(groups, option)

    def reestimate_shortcut(self, batches: Sequence[Tensor]) -> None:
        """See `RoutedBlock.reestimate_shortcut`."""
        self._shortcut.reestimate(batches)
