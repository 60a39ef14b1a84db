"""What networks of both kinds are made of in ONNX, to the arithmetic of docs/bundle.md.

Integers travel through QuantizeLinear and DequantizeLinear of scale 1, as "levels"; what a level
stands for is a product of its own behind the convolution. Sums of products of levels are exact in
float32 up to 2^24, so neither the order of summation nor a runtime's graph optimisations can
change what a value rounds to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.deployment.onnx_graph import Graph, value_info
from fracskip.options import Option
from fracskip.quant.affine import IntegerGrid
from fracskip.runtime.elements import Window

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


def linear(graph: Graph, tensors: Arrays, key: str, x: str, name: str) -> str:
    """Adds a linear layer on (1, inputs)."""
    weight = graph.tensor(f"{name}.weight", tensors[f"{key}.weight"])
    bias = graph.tensor(f"{name}.bias", tensors[f"{key}.bias"])
    return graph.node("Gemm", [x, weight, bias], name, transB=1)


def window(given: Window) -> dict[str, Any]:
    """A window as attributes of a convolution or pool."""
    return {"kernel_shape": given.kernel, "strides": given.stride, "pads": given.padding}


def padded(graph: Graph, x: str, given: Window, value: float, name: str) -> str:
    """Adds a window's padding, of some value, as a node of its own."""
    if not any(given.padding):
        return x
    top, left, bottom, right = given.padding
    around = graph.tensor(f"{name}.around", [0, 0, top, left, 0, 0, bottom, right], np.int64)
    border = graph.tensor(f"{name}.border", value)
    return graph.node("Pad", [x, around, border], f"{name}.padded")


def multiply(graph: Graph, x: str, factor: ArrayLike, name: str) -> str:
    """Adds a product with a constant."""
    return graph.node("Mul", [x, graph.tensor(f"{name}.factor", factor)], name)


def quantise(graph: Graph, x: str, bits: int, name: str, zero: int = 0) -> str:
    """Rounds to integers of a width; uint8 has no narrower bounds of its own.

    Args:
        graph: Where to.
        x: In units of the step.
        bits: The width.
        name: Of what is added.
        zero: The level that stands for 0.
    """
    if bits < 8:
        _, top = IntegerGrid(bits, signed=False).bounds
        low = graph.tensor(f"{name}.bottom", -zero) if zero else ""
        x = graph.node("Clip", [x, low, graph.tensor(f"{name}.top", top - zero)], f"{name}.clipped")
    return graph.node("QuantizeLinear", [x, *_scale_one(graph, name, zero)], name)


def dequantise(graph: Graph, x: str, name: str) -> str:
    """Adds what makes levels floats."""
    return graph.node("DequantizeLinear", [x, *_scale_one(graph, name)], name)


def _scale_one(graph: Graph, name: str, zero: int = 0) -> tuple[str, str]:
    return graph.tensor(f"{name}.one", 1), graph.tensor(f"{name}.zero", zero, np.uint8)


def convolve(graph: Graph, tensors: Arrays, key: str, x: str, name: str, **attributes: Any) -> str:
    """Adds a convolution of float32 by float weights, or of levels by integers.

    Args:
        graph: Where to.
        tensors: The bundle's.
        key: Of its tensors.
        x: Values, or levels as floats.
        name: Of what is added.
        attributes: Window, dilations, group.
    """
    weight = tensors[f"{key}.weight"].transpose(0, 3, 1, 2)
    bias = tensors[f"{key}.bias"]
    if weight.dtype != np.int8:
        inputs = [x, graph.tensor(f"{name}.weight", weight), graph.tensor(f"{name}.bias", bias)]
        return graph.node("Conv", inputs, name, **attributes)
    integers = graph.tensor(f"{name}.weight", weight, np.int8)
    one = graph.tensor(f"{name}.weight.one", 1)
    weights = graph.node("DequantizeLinear", [integers, one], f"{name}.weight.levels")
    total = graph.node("Conv", [x, weights], f"{name}.sum", **attributes)
    scale = tensors[f"{key}.scale"]
    product = multiply(graph, total, scale[:, None, None], f"{name}.product")
    return graph.node("Add", [product, graph.tensor(f"{name}.bias", bias[:, None, None])], name)


def choose(
    graph: Graph,
    choice: str,
    options: Sequence[Option],
    name: str,
    kind: int,
    execute: Callable[[Graph, Option, str], str],
) -> str:
    """Adds the choice among options: a binary tree of `If`. What is not chosen is not executed.

    Args:
        graph: Where to.
        choice: The index of the option.
        options: All of them.
        name: The block's.
        kind: Element type of what they give.
        execute: Adds an option under a name to a graph, and says what gives its value.
    """

    def between(into: Graph, low: int, high: int) -> str:
        path = f"{name}/{options[low].label}"
        if high - low == 1:
            return execute(into, options[low], path)
        whole = high - low == len(options)
        place = name if whole else f"{path}..{options[high - 1].label}"
        middle = (low + high) // 2
        limit = into.tensor(f"{place}.limit", middle, np.int64)
        is_lower = into.node("Less", [choice, limit], f"{place}.is_lower")
        bodies = []
        for part in ((low, middle), (middle, high)):
            body = Graph()
            output = value_info(between(body, *part), kind)
            bodies.append(body.proto(output.name, [], [output]))
        lower, upper = bodies
        return into.node("If", [is_lower], place, then_branch=lower, else_branch=upper)

    return between(graph, 0, len(options))
