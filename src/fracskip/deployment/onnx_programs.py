"""The parts of a network in ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fracskip.deployment.onnx_graph import FLOAT, UINT8, Graph
from fracskip.deployment.onnx_pieces import (
    Arrays,
    Flow,
    choose,
    convolve,
    dequantise,
    multiply,
    padded,
    quantise,
    window,
)
from fracskip.options import Option
from fracskip.runtime.operations import (
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    MeanOp,
    NormOp,
    PoolOp,
)
from fracskip.runtime.plan import Plan


class ProgramWriter:
    """Adds the parts of a network, one by one.

    Args:
        plan: A bundle's plan.
        tensors: Its tensors.

    Attributes:
        parts: Name of each, and whether a gate decides for it.
    """

    def __init__(self, plan: Plan, tensors: Arrays) -> None:
        self._plan, self._tensors = plan, tensors
        self._programs = {program.name: program for program in plan.programs}
        self.parts = tuple(
            (part.name or f"part{index}", part.gated)
            for index, part in enumerate(plan.network.parts)
        )

    def pooled(self, graph: Graph, index: int, x: Flow, name: str) -> str:
        """Adds the mean over height and width of a part's input: (1, C)."""
        mean = graph.node("GlobalAveragePool", [x.floats], f"{name}.mean")
        if self._plan.stream == "int8":
            mean = self._values(graph, index - 1, mean, f"{name}.values")
        return graph.node("Flatten", [mean], name)

    def block(self, graph: Graph, index: int, x: Flow, choice: str | None) -> Flow:
        """Adds a part.

        Args:
            graph: Where to.
            index: The part's.
            x: Its input.
            choice: What decides: the index of the option whose nodes alone are executed. None for
                a part of one option.
        """
        part, (name, _) = self._plan.network.parts[index], self.parts[index]
        key = f"parts.{index}"
        rounds = self._plan.stream == "int8" and index + 1 < len(self.parts)
        shortcut = None
        if part.residual:  # every option needs it
            shortcut = x.floats
            if part.shortcut:
                shortcut = self._program(graph, f"{key}.shortcut", x, f"{name}/shortcut")

        def execute(into: Graph, option: Option, path: str) -> str:
            if option.is_skip and not part.residual:
                # Never chosen; an `If` needs something there, of the other options' shape.
                option = options[1]
            if option.is_skip and part.skip_is_identity:
                return into.node("Identity", [x.raw], path)
            y = shortcut or x.floats
            if not option.is_skip:
                y = self._program(into, f"{key}.{option.label}", x, f"{path}/branch")
                if shortcut is not None:
                    y = into.node("Add", [y, shortcut], f"{path}.sum")
            for position, op in enumerate(part.after):
                assert isinstance(op, ActOp)
                y = activate(into, op.act, y, f"{path}/after.{position}")
            return quantise(into, y, 8, path) if rounds else into.node("Identity", [y], path)

        options = [Option.parse(label) for label in part.options]
        if choice is None:
            y = execute(graph, options[0], name)
        else:
            kind = UINT8 if rounds else FLOAT
            y = choose(graph, choice, options, name, kind, execute)
        return Flow(y, dequantise(graph, y, f"{y}.levels") if rounds else y)

    def _values(self, graph: Graph, part: int, levels: str, name: str) -> str:
        """Adds what makes values of the levels that a part gives, or of means of them."""
        zero = self._tensors.get(f"parts.{part}.zero")
        if zero is not None:
            offset = graph.tensor(f"{name}.zero", zero[0])
            levels = graph.node("Sub", [levels, offset], f"{name}.centred")
        return multiply(graph, levels, self._tensors[f"parts.{part}.step"][0], name)

    def head(self, graph: Graph, x: Flow, name: str) -> str:
        """Adds what makes a row of the last part's values."""
        return graph.node("Flatten", [x.floats], name)

    # -- programs --------------------------------------------------------------------------------

    def _program(self, graph: Graph, key: str, x: Flow, name: str) -> str:
        """Adds a program's operations; none give what they take, levels as levels."""
        program = self._programs[key]
        clamped = program.left_to_clamps(self._tensors)
        raw = [program.takes_levels(k, self._tensors) for k in range(len(program.ops))]
        first = x.floats
        if program.entry is not None and any(
            0 in op.inputs and not taken for op, taken in zip(program.ops, raw, strict=True)
        ):
            first = self._values(graph, program.entry, first, f"{name}.values")
        values = [first]
        for position, op in enumerate(program.ops):
            place, own = f"{name}.{position}", f"{key}.{position}"
            inputs = [values[index] for index in op.inputs]
            if isinstance(op, ConvOp):
                taken = x.floats if raw[position] else inputs[0]
                y = self._convolution(graph, own, op, taken, place, program.bits, raw[position])
            else:
                y = self._operation(graph, own, op, inputs, place)
            act = "none" if position in clamped else getattr(op, "act", "none")
            values.append(activate(graph, act, y, f"{place}.act"))
        return values[-1]

    def _operation(self, graph: Graph, key: str, op: Any, inputs: list[str], name: str) -> str:
        (x, *_) = inputs
        if isinstance(op, PoolOp):
            if op.kind == "max":
                return graph.node("MaxPool", [x], name, **window(op))
            attributes = window(op)
            if op.count_padding:  # ONNX has no pads as wide as a kernel
                x = padded(graph, x, op, 0, name)
                attributes["pads"] = (0, 0, 0, 0)
            return graph.node("AveragePool", [x], name, **attributes)
        if isinstance(op, MeanOp):
            return graph.node("GlobalAveragePool", [x], name)
        if isinstance(op, BinaryOp):
            return graph.node("Add" if op.op == "add" else "Mul", inputs, name)
        if isinstance(op, NormOp):
            return self._norm(graph, key, op, x, name)
        if isinstance(op, AffineOp):
            gain, bias = (self._tensors[f"{key}.{kind}"] for kind in ("gain", "bias"))
            product = multiply(graph, x, gain[:, None, None], f"{name}.product")
            offset = graph.tensor(f"{name}.bias", bias[:, None, None])
            return graph.node("Add", [product, offset], name)
        assert isinstance(op, ActOp)
        return x

    def _norm(self, graph: Graph, key: str, op: NormOp, x: str, name: str) -> str:
        last = graph.node("Transpose", [x], f"{name}.last", perm=[0, 2, 3, 1])
        terms = [
            graph.tensor(f"{name}.{kind}", self._tensors[f"{key}.{kind}"])
            for kind in ("gain", "bias")
        ]
        normed = graph.node(
            "LayerNormalization", [last, *terms], f"{name}.normed", axis=-1, epsilon=op.eps
        )
        return graph.node("Transpose", [normed], name, perm=[0, 3, 1, 2])

    def _convolution(
        self, graph: Graph, key: str, op: ConvOp, x: str, name: str, bits: int, raw: bool
    ) -> str:
        """Adds a convolution of values, or - if `raw` - of levels as they are."""
        attributes = {**window(op), "dilations": op.dilation, "group": op.groups}
        if bits:
            inverse = self._tensors.get(f"{key}.input")
            zero = self._tensors.get(f"{key}.zero")
            level = 0 if zero is None else int(zero[0])
            if inverse is not None:
                x = multiply(graph, x, inverse[0], f"{name}.unrounded")
            if not raw:
                x = quantise(graph, x, bits, f"{name}.input", level)
                x = dequantise(graph, x, f"{name}.levels")
            if level:  # stands for 0
                x = padded(graph, x, op, level, name)
                attributes["pads"] = (0, 0, 0, 0)
        return convolve(graph, self._tensors, key, x, name, **attributes)


Activation = Callable[[Graph, str, str], str]


def activate(graph: Graph, act: str, x: str, name: str) -> str:
    """Adds an activation; 'none' adds nothing."""
    return x if act == "none" else _ACTS[act](graph, x, name)


def _relu6(graph: Graph, x: str, name: str) -> str:
    bounds = (graph.tensor(f"{name}.low", 0), graph.tensor(f"{name}.high", 6))
    return graph.node("Clip", [x, *bounds], name)


def _hardsigmoid(graph: Graph, x: str, name: str) -> str:
    return graph.node("HardSigmoid", [x], name, alpha=1 / 6, beta=0.5)


def _silu(graph: Graph, x: str, name: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)


def _gelu(graph: Graph, x: str, name: str) -> str:
    scaled = multiply(graph, x, 1 / math.sqrt(2), f"{name}.scaled")
    erf = graph.node("Erf", [scaled], f"{name}.erf")
    above = graph.node("Add", [erf, graph.tensor(f"{name}.one", 1)], f"{name}.above")
    return graph.node("Mul", [multiply(graph, x, 0.5, f"{name}.half"), above], name)


_ACTS: dict[str, Activation] = {
    "relu": lambda graph, x, name: graph.node("Relu", [x], name),
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda graph, x, name: graph.node("HardSwish", [x], name),
    "sigmoid": lambda graph, x, name: graph.node("Sigmoid", [x], name),
    "silu": _silu,
    "gelu": _gelu,
}
