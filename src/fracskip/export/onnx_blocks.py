"""Stem, residual blocks and head in ONNX, to the arithmetic of docs/bundle.md.

Integers travel through QuantizeLinear and DequantizeLinear of scale 1, as "levels"; what a level
stands for is a product of its own behind the convolution. Sums of products of levels are exact in
float32 up to 2^24, so neither the order of summation nor a runtime's graph optimisations can
change what a value rounds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.export.onnx_graph import FLOAT, UINT8, Graph, value_info
from fracskip.options import Option
from fracskip.quant.affine import IntegerGrid
from fracskip.runtime.plan import WIDEST_INTEGERS, BlockPlan, ConvGeometry, Plan, StemConv, Window

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Flow:
    """What runs between two blocks, by the names of its nodes.

    Attributes:
        raw: As the block before gave it: float32 values, or uint8 levels.
        floats: The same as float32: values, or levels.
    """

    raw: str
    floats: str


class NetworkWriter:
    """Adds the parts of a network, one by one.

    Args:
        plan: A bundle's plan.
        tensors: Its tensors.
    """

    def __init__(self, plan: Plan, tensors: Arrays) -> None:
        self._plan = plan
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
                x = graph.node("MaxPool", [x], name, **_window(op))
        return self._flow(graph, x if self._steps is None else _quantise(graph, x, 8, "stem"))

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
            mean = _multiply(graph, mean, self._steps[index], f"{name}.values")
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

        def choose(into: Graph, low: int, high: int) -> str:
            """Adds the choice among options low to high - 1: a binary tree of `If`."""
            path = f"{plan.name}/{options[low].label}"
            if high - low == 1:
                return self._execute(into, index, x, shortcut, options[low], path)
            name = plan.name if high - low == len(options) else f"{path}..{options[high - 1].label}"
            middle = (low + high) // 2
            limit = into.tensor(f"{name}.limit", middle, np.int64)
            is_lower = into.node("Less", [choice, limit], f"{name}.is_lower")
            bodies = []
            for part in ((low, middle), (middle, high)):
                body = Graph()
                output = value_info(choose(body, *part), kind)
                bodies.append(body.proto(output.name, [], [output]))
            lower, upper = bodies
            return into.node("If", [is_lower], name, then_branch=lower, else_branch=upper)

        return self._flow(graph, choose(graph, 0, len(options)))

    def head(self, graph: Graph, x: Flow, name: str) -> str:
        """Adds the classifier."""
        features = self.pooled(graph, len(self._plan.network.blocks), x, "features")
        return linear(graph, self._tensors, "head", features, name)

    def _flow(self, graph: Graph, raw: str) -> Flow:
        if self._steps is None:
            return Flow(raw, raw)
        return Flow(raw, _dequantise(graph, raw, f"{raw}.levels"))

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
        return _quantise(graph, y, 8, name)

    def _branch(
        self, graph: Graph, index: int, block: BlockPlan, x: str, option: Option, name: str
    ) -> str:
        key = f"blocks.{index}.{option.label}"
        in_integers = option.bits <= WIDEST_INTEGERS
        inverse_step = self._tensors.get(f"{key}.input")
        if self._steps is not None and (inverse_step is not None or not in_integers):
            x = _multiply(graph, x, self._steps[index], f"{name}.values")
        if inverse_step is not None:
            x = _multiply(graph, x, inverse_step[0], f"{name}.unrounded")
        for position, conv in enumerate(block.branch):
            part = f"{name}/conv{position + 1}"
            if in_integers and (position or inverse_step is not None):
                x = _quantise(graph, x, option.bits, f"{part}.input")
                x = _dequantise(graph, x, f"{part}.levels")
            elif position:
                x = graph.node("Relu", [x], f"{part}.input")
            x = self._convolve(graph, f"{key}.{position}", conv, x, part)
        return x

    def _convolve(self, graph: Graph, key: str, conv: ConvGeometry, x: str, name: str) -> str:
        """Adds a convolution of float32 by float weights, or of levels by integers."""
        weight = self._tensors[f"{key}.weight"].transpose(0, 3, 1, 2)
        bias = self._tensors[f"{key}.bias"]
        if weight.dtype != np.int8:
            inputs = [x, graph.tensor(f"{name}.weight", weight), graph.tensor(f"{name}.bias", bias)]
            return graph.node("Conv", inputs, name, **_window(conv))
        integers = graph.tensor(f"{name}.weight", weight, np.int8)
        one = graph.tensor(f"{name}.weight.one", 1)
        weights = graph.node("DequantizeLinear", [integers, one], f"{name}.weight.levels")
        total = graph.node("Conv", [x, weights], f"{name}.sum", **_window(conv))
        scale = self._tensors[f"{key}.scale"]
        product = _multiply(graph, total, scale[:, None, None], f"{name}.product")
        return graph.node("Add", [product, graph.tensor(f"{name}.bias", bias[:, None, None])], name)


def linear(graph: Graph, tensors: Arrays, key: str, x: str, name: str) -> str:
    """Adds a linear layer on (1, inputs)."""
    weight = graph.tensor(f"{name}.weight", tensors[f"{key}.weight"])
    bias = graph.tensor(f"{name}.bias", tensors[f"{key}.bias"])
    return graph.node("Gemm", [x, weight, bias], name, transB=1)


def _window(window: Window) -> dict[str, Any]:
    pads = window.padding * 2
    return {"kernel_shape": window.kernel, "strides": window.stride, "pads": pads}


def _multiply(graph: Graph, x: str, factor: ArrayLike, name: str) -> str:
    return graph.node("Mul", [x, graph.tensor(f"{name}.factor", factor)], name)


def _quantise(graph: Graph, x: str, bits: int, name: str) -> str:
    """Rounds to integers of a width; uint8 has no narrower bounds of its own."""
    if bits < 8:
        _, top = IntegerGrid(bits, signed=False).bounds
        x = graph.node("Clip", [x, "", graph.tensor(f"{name}.top", top)], f"{name}.clipped")
    return graph.node("QuantizeLinear", [x, *_scale_one(graph, name)], name)


def _dequantise(graph: Graph, x: str, name: str) -> str:
    return graph.node("DequantizeLinear", [x, *_scale_one(graph, name)], name)


def _scale_one(graph: Graph, name: str) -> tuple[str, str]:
    return graph.tensor(f"{name}.one", 1), graph.tensor(f"{name}.zero", 0, np.uint8)
