"""Stem, residual blocks and head of a CIFAR ResNet in ONNX."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fracskip.deployment.onnx_graph import FLOAT, UINT8, Graph
from fracskip.deployment.onnx_pieces import (
    Arrays,
    Flow,
    choose,
    convolve,
    dequantise,
    linear,
    multiply,
    quantise,
    window,
)
from fracskip.options import Option
from fracskip.runtime.plan import WIDEST_INTEGERS
from fracskip.runtime.residual import BlockPlan, ConvGeometry, ResidualPlan, StemConv


class NetworkWriter:
    """Adds the parts of a network, one by one.

    Args:
        plan: A bundle's plan.
        tensors: Its tensors.

    Attributes:
        parts: Name of each, and whether a gate decides for it.
    """

    def __init__(self, plan: ResidualPlan, tensors: Arrays) -> None:
        self._plan = plan
        self.parts = tuple((block.name, block.gated) for block in plan.network.blocks)
        self._tensors = tensors
        self._steps: NDArray[np.float32] | None = None
        if plan.integer_stream:
            # Of each block's input, and of the last one's output.
            self._steps = tensors["stream.steps"][[0, *plan.stages]]

    def stem(self, graph: Graph, x: str) -> Flow:
        """Adds the stem."""
        for position, op in enumerate(self._plan.network.stem):
            name = f"stem.{position}"
            if isinstance(op, StemConv):
                x = graph.node("Relu", [self._convolve(graph, name, op, x, f"{name}.conv")], name)
            else:
                x = graph.node("MaxPool", [x], name, **window(op))
        return self._flow(graph, x if self._steps is None else quantise(graph, x, 8, "stem"))

    def pooled(self, graph: Graph, index: int, x: Flow, name: str) -> str:
        """Adds the mean over height and width of a block's input: (1, C).

        Args:
            graph: Where to.
            index: The block's; the number of blocks for the head.
            x: The input.
            name: Of what is added.
        """
        mean = graph.node("GlobalAveragePool", [x.floats], f"{name}.mean")
        if self._steps is not None:
            mean = multiply(graph, mean, self._steps[index], f"{name}.values")
        return graph.node("Flatten", [mean], name)

    def block(self, graph: Graph, index: int, x: Flow, choice: str | None) -> Flow:
        """Adds a block.

        Args:
            graph: Where to.
            index: The block's.
            x: Its input.
            choice: What decides: the index of the option whose nodes alone are executed. None for
                a block of one option.
        """
        plan = self._plan.network.blocks[index]
        shortcut = None
        if plan.shortcut is not None:  # every option needs it
            key, name = f"blocks.{index}.shortcut", f"{plan.name}/shortcut"
            shortcut = self._convolve(graph, key, plan.shortcut, x.floats, name)
        options = [Option.parse(label) for label in plan.options]
        if choice is None:
            (option,) = options
            return self._flow(graph, self._execute(graph, index, x, shortcut, option, plan.name))
        kind = FLOAT if self._steps is None else UINT8

        def execute(into: Graph, option: Option, name: str) -> str:
            return self._execute(into, index, x, shortcut, option, name)

        return self._flow(graph, choose(graph, choice, options, plan.name, kind, execute))

    def head(self, graph: Graph, x: Flow, name: str) -> str:
        """Adds the classifier."""
        features = self.pooled(graph, len(self._plan.network.blocks), x, "features")
        return linear(graph, self._tensors, "head", features, name)

    def _flow(self, graph: Graph, raw: str) -> Flow:
        if self._steps is None:
            return Flow(raw, raw)
        return Flow(raw, dequantise(graph, raw, f"{raw}.levels"))

    def _execute(
        self, graph: Graph, index: int, x: Flow, shortcut: str | None, option: Option, name: str
    ) -> str:
        """Adds one option of a block, from flow to flow."""
        if option.is_skip and shortcut is None:
            return graph.node("Identity", [x.raw], name)
        y = shortcut or x.floats
        if not option.is_skip:
            block = self._plan.network.blocks[index]
            residual = self._branch(graph, index, block, x.floats, option, name)
            y = graph.node("Add", [residual, y], f"{name}.sum")
        if self._steps is None:
            return graph.node("Relu", [y], name)
        return quantise(graph, y, 8, name)

    def _branch(
        self, graph: Graph, index: int, block: BlockPlan, x: str, option: Option, name: str
    ) -> str:
        key = f"blocks.{index}.{option.label}"
        in_integers = option.bits <= WIDEST_INTEGERS
        inverse_step = self._tensors.get(f"{key}.input")
        if self._steps is not None and (inverse_step is not None or not in_integers):
            x = multiply(graph, x, self._steps[index], f"{name}.values")
        if inverse_step is not None:
            x = multiply(graph, x, inverse_step[0], f"{name}.unrounded")
        for position, conv in enumerate(block.branch):
            part = f"{name}/conv{position + 1}"
            if in_integers and (position or inverse_step is not None):
                x = quantise(graph, x, option.bits, f"{part}.input")
                x = dequantise(graph, x, f"{part}.levels")
            elif position:
                x = graph.node("Relu", [x], f"{part}.input")
            x = self._convolve(graph, f"{key}.{position}", conv, x, part)
        return x

    def _convolve(self, graph: Graph, key: str, conv: ConvGeometry, x: str, name: str) -> str:
        return convolve(graph, self._tensors, key, x, name, **window(conv))
