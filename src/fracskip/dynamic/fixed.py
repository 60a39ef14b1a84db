"""Parts of a network that no gate decides for: each executes one option, whatever is chosen.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fracskip.config import QuantConfig
from fracskip.dynamic.routing import Gather
from fracskip.dynamic.steps import FractionalSteps
from fracskip.models.graph import Graph, Node
from fracskip.options import FULL_BITS, Option, OptionSet
from fracskip.quant.quantisers import STREAM_BITS
from fracskip.quant.stream import StreamQuantiser

FULL = Option(FULL_BITS)
STREAM_OPTION = Option(STREAM_BITS)
# What `observe` has not done.
_NOT_OBSERVED = Gather.ROUNDING | Gather.STATISTICS


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
    """A section at one option.

    Args:
        net: The network; layers of a section that is quantised are converted in place.
        graph: Its graph.
        section: What is executed.
        quant: How it is quantised.
        option: The option: full, or 8 bits.
        stream: The stream between blocks, if it is int8.
        stage: Of what is given; None where that is no part of the stream.
        levels_in: Whether what is taken is a part of it.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        section: Section,
        quant: QuantConfig,
        option: Option,
        stream: StreamQuantiser | None = None,
        stage: int | None = None,
        levels_in: bool = True,
    ) -> None:
        self.section, self.option, self.stage = section, option, stage
        self._stream = stream
        options = None if option.is_full else OptionSet((option,))
        nodes, entry, output = section.nodes, section.entry, section.output
        self._steps = FractionalSteps(net, graph, nodes, entry, output, options, quant, levels_in)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), or what the network ends with."""
        return self._given(self._steps(x, self.option))

    def _given(self, y: Tensor) -> Tensor:
        if self._stream is None or self.stage is None:
            return y
        levels: Tensor = self._stream(y, self.stage)
        return levels

    def observe(self, x: Tensor) -> Tensor:
        """Initialises its ranges on the plain network's values; gives the plain network's next."""
        return self._steps.observe(x, self.option)

    @torch.no_grad()
    def calibrate(self, x: Tensor, gather: Gather) -> Tensor:
        """Executes it for one batch and gathers what calibration needs, but for its ranges."""
        return self._given(self._steps.calibrate(x, self.option, gather & _NOT_OBSERVED))

    def finish_calibration(self) -> None:
        """Stores what `calibrate` gathered, if anything."""
        self._steps.finish_calibration(self.option)

    @torch.no_grad()
    def reestimate(self, batches: Sequence[Tensor]) -> None:
        """Estimates its BatchNorms' statistics anew, on all images (B, C, H, W)."""
        self._steps.reestimate(batches, self.option)
