"""A bundle's arithmetic (docs/bundle.md) in NumPy, image by image: slow and obvious.

Integers are Python-wide; what is float32 is float32, one operation at a time.
Shapes: C channels, H height, W width, K options, L gated blocks, N classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.options import Option
from fracskip.quant.affine import IntegerGrid, quantise
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.elements import Window
from fracskip.runtime.operations import ActOp, ConvOp, MeanOp, PoolOp

Floats = NDArray[np.float32]
F32 = np.float32


def windows(x: NDArray[Any], window: Window, padding: float = 0) -> NDArray[Any]:
    """Every window of an image (H, W, C): (H', W', kh, kw, C)."""
    (top, left, bottom, right), (kernel_h, kernel_w) = window.padding, window.kernel
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=padding)
    found = np.lib.stride_tricks.sliding_window_view(padded, (kernel_h, kernel_w), (0, 1))
    stride_h, stride_w = window.stride
    return np.moveaxis(found[::stride_h, ::stride_w], 2, -1)


def integer_convolution(
    q: NDArray[np.integer[Any]], weight: NDArray[np.int8], window: Window
) -> NDArray[np.int64]:
    """Accumulators (H', W', O) of levels (H, W, I) and weights (O, kh, kw, I)."""
    parts = windows(q.astype(np.int64), window)
    return np.einsum("hwklc,oklc->hwo", parts, weight.astype(np.int64))


def float_convolution(x: Floats, weight: Floats, bias: Floats, window: Window) -> Floats:
    """Sums in float64, rounded once: as good as any order in float32."""
    parts = windows(x.astype(np.float64), window)
    y = np.einsum("hwklc,oklc->hwo", parts, weight.astype(np.float64)) + bias
    return y.astype(F32)


def levels(y: Floats, bits: int) -> Floats:
    """Values in units of a grid to its levels."""
    return quantise(y, F32(1), 0, IntegerGrid(bits, signed=False).bounds).astype(F32)


class Reference:
    """Runs a bundle whose programs hold convolutions, max pools, means and ReLUs.

    Args:
        bundle: What to run.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.plan = bundle.plan
        self.tensors = bundle.tensors
        self._programs = {program.name: program for program in bundle.plan.programs}

    def convolve(self, name: str, x: Floats, op: ConvOp) -> Floats:
        """One convolution, of levels where its weights are integers; no activation."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        if weight.dtype != np.int8:
            return float_convolution(x, weight, bias, op)
        acc = integer_convolution(x.astype(np.int64), weight, op)
        assert np.abs(acc).max() < 2**31
        return acc.astype(np.int32).astype(F32) * self.tensors[f"{name}.scale"] + bias

    def program(self, name: str, x: Floats) -> Floats:
        """A program of what a part takes, (H, W, C): levels in an int8 stream."""
        program = self._programs[name]
        taken = x if program.entry is None else x * self._step(program.entry)
        values = [taken]
        clamped = program.left_to_clamps(self.tensors)
        for position, op in enumerate(program.ops):
            value, place = values[op.inputs[0]], f"{name}.{position}"
            if isinstance(op, ConvOp):
                if program.takes_levels(position, self.tensors):
                    value = x
                elif program.bits:
                    own = self.tensors.get(f"{place}.input")
                    value = levels(value if own is None else value * own, program.bits)
                y = self.convolve(place, value, op)
                if op.act != "none" and position not in clamped:
                    assert op.act == "relu"
                    y = np.maximum(y, F32(0))
            elif isinstance(op, PoolOp):
                assert op.kind == "max"
                y = windows(value, op, padding=-np.inf).max((2, 3))
            else:
                assert isinstance(op, MeanOp)
                y = value.mean((0, 1), dtype=np.float64, keepdims=True).astype(F32)
            values.append(y)
        return values[-1]

    def _step(self, index: int) -> Any:
        return self.tensors[f"parts.{index}.step"]

    def normalised(self, image: NDArray[Any]) -> Floats:
        """One image, uint8 or normalised float32 (H, W, C), as the first part takes it."""
        if image.dtype != np.uint8:
            return image
        mean, std = (np.array(v, F32) for v in (self.plan.image.mean, self.plan.image.std))
        return (image.astype(F32) * F32(1 / 255) - mean) * (F32(1) / std)

    def part(self, index: int, x: Floats, option: int = 0) -> Floats:
        """One option of a part: (H, W, C) -> (H', W', C')."""
        part = self.plan.network.parts[index]
        chosen = Option.parse(part.options[option])
        if chosen.is_skip and part.skip_is_identity:
            return x
        y: Any = 0
        if part.residual:
            y = self.program(f"parts.{index}.shortcut", x) if part.shortcut else x
        if not chosen.is_skip:
            y = self.program(f"parts.{index}.{chosen.label}", x) + y
        for op in part.after:
            assert isinstance(op, ActOp)
            assert op.act == "relu"
            y = np.maximum(y, F32(0))
        last = index == len(self.plan.network.parts) - 1
        return levels(y, 8) if self.plan.stream == "int8" and not last else y

    def pool(self, index: int, x: Floats) -> Floats:
        """Means (C,) of what a part takes, in values."""
        if self.plan.stream == "float":
            return x.mean((0, 1), dtype=np.float64).astype(F32)
        total = x.astype(np.int64).sum((0, 1)).astype(F32)
        return total / F32(x.shape[0] * x.shape[1]) * self._step(index - 1)

    def scores(self, outputs: Floats, multiplier: float | None) -> Floats:
        """Scores (K,) from what the gate's last layer gives; no multiplier is the plan's own."""
        gate = self.plan.gate
        assert gate is not None
        bits = np.array([Option.parse(label).bits for label in self.plan.options], F32)
        weights = np.arange(len(bits), dtype=F32) / F32(len(bits) - 1)
        scores = -outputs
        if gate.output == "sensitivity":
            scores = F32(1000) * np.exp(np.minimum(outputs, F32(0)))
            weights = (bits / bits[-1]) ** 2
        own = self.plan.operating_points.multiplier
        return scores + F32(own if multiplier is None else multiplier) * weights

    def run(
        self,
        image: NDArray[Any],
        decisions: NDArray[Any] | None = None,
        budget: float = 0,
        multiplier: float | None = None,
    ) -> tuple[Floats, list[int], float]:
        """Logits (N,), decisions (L,), and how close the closest decision was."""
        x, gate, made, margin = self.normalised(image), _Gate(self, budget), [], np.inf
        for index, part in enumerate(self.plan.network.parts):
            choice = 0
            if part.gated and decisions is not None:
                choice = int(decisions[len(made)])
            elif part.gated and self.plan.gate is not None:
                scores = self.scores(gate.outputs(len(made), self.pool(index, x)), multiplier)
                choice = int(scores.argmin())
                margin = min(margin, float(np.diff(np.sort(scores)[:2])[0]))
            if part.gated:
                made.append(choice)
            x = self.part(index, x, choice)
        return x.ravel(), made, margin


class _Gate:
    """The gate's state for one image."""

    def __init__(self, network: Reference, budget: float) -> None:
        self._tensors, self._plan = network.tensors, network.plan.gate
        self._embedded: Any = 0
        if self._plan is not None and self._plan.budget_input:
            scaled = F32(np.log10(F32(budget)) / 1.5 + 1)
            self._embedded = self._linear_terms("gate.budget", scaled)
        self._hidden = self._cell = np.zeros(1 if self._plan is None else self._plan.width, F32)

    def _linear_terms(self, name: str, x: Any) -> Any:
        return self._tensors[f"{name}.weight"] * x + self._tensors[f"{name}.bias"]

    def _linear(self, name: str, x: Floats) -> Floats:
        return self._product(f"{name}.weight", x) + self._tensors[f"{name}.bias"]

    def _product(self, name: str, x: Floats) -> Floats:
        # Not `@`: with five columns OpenBLAS's AVX-512 kernel also multiplies what lies beyond
        # the row, and numpy warns where that memory happens to hold a signalling NaN.
        return (self._tensors[name] * x).sum(1)

    def outputs(self, block: int, pooled: Floats) -> Floats:
        assert self._plan is not None
        features = self._linear(f"gate.embed.{block}", pooled) + self._embedded
        if self._plan.kind == "feedforward":
            return self._linear(f"gate.out.{block}", np.maximum(features, 0))
        terms = self._product("gate.lstm.weight_ih", features) + self._tensors["gate.lstm.bias"]
        terms = terms + self._product("gate.lstm.weight_hh", self._hidden)
        entry, forget, new, leave = np.split(terms, 4)
        self._cell = _sigmoid(forget) * self._cell + _sigmoid(entry) * np.tanh(new)
        self._hidden = _sigmoid(leave) * np.tanh(self._cell)
        own = self._tensors.get("gate.block_bias")
        return self._linear("gate.out", self._hidden) + (0 if own is None else own[block])


def _sigmoid(x: Floats) -> Floats:
    return F32(0.5) * (1 + np.tanh(x / F32(2)))
