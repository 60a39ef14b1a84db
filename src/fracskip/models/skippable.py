"""A plain network executed block by block, of which a pass may leave some out."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from fracskip.errors import ConfigError
from fracskip.models.graph import Node
from fracskip.models.steps import Steps
from fracskip.models.structure import Chooser, find_blocks


class SkippableNetwork:
    """A network whose residual blocks can be left out of a pass.

    Blocks are counted in order of execution from 0, the first one, which is always executed.

    Args:
        net: The network, which is executed in the mode that it is in. What `tracing.trace` replaces
            in it is replaced.
        image: Channels, height and width of its images.
        blocks: Which modules are blocks; None finds them by structure.

    Attributes:
        count: How many blocks there are, the first one included.
        skippable: Those whose shortcut is the identity.

    Raises:
        ConfigError: if there are none of these, or the network can't be traced.
    """

    def __init__(self, net: nn.Module, image: tuple[int, int, int], blocks: Chooser = None) -> None:
        training = net.training
        structure = find_blocks(net.eval(), image, blocks)
        net.train(training)
        graph = structure.graph

        def steps(entry: Node, output: Node) -> Steps:
            return Steps(net, graph, (), [entry], output)

        self._parts: list[tuple[Steps, Steps, Steps | None]] = []
        end = graph[0]
        for block in structure.blocks:
            left = None
            if block.sum is not None and block.shortcut is None:
                left = steps(block.sum, block.output)
            self._parts.append((steps(end, block.entry), steps(block.entry, block.output), left))
            end = block.output
        self._head = steps(end, graph[graph.output])
        self.count = len(self._parts) + 1
        self.skippable = [i for i, (_, _, left) in enumerate(self._parts, 1) if left is not None]
        if not self.skippable:
            raise ConfigError(
                f"no block of {type(net).__name__} can be left out: none after the first has a "
                "shortcut that is the identity"
            )

    def __call__(self, images: Tensor, skipped: Collection[int] = ()) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, N).

        Args:
            images: The images.
            skipped: Blocks of which nothing is executed but what follows the sum.
        """
        x = images
        for index, (before, whole, left) in enumerate(self._parts, 1):
            x = before(x)
            x = left(x) if left is not None and index in skipped else whole(x)
        logits: Tensor = self._head(x)
        return logits
