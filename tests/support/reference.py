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
from fracskip.runtime.plan import Window
from fracskip.runtime.residual import StemConv

Floats = NDArray[np.float32]
F32 = np.float32


def windows(x: NDArray[Any], window: Window, padding: float = 0) -> NDArray[Any]:
    """Every window of an image (H, W, C): (H', W', kh, kw, C)."""
    (pad_h, pad_w), (kernel_h, kernel_w) = window.padding, window.kernel
    padded = np.pad(x, ((pad_h, pad_h), (pad_w, pad_w), (0, 0)), constant_values=padding)
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
    """Runs a bundle.

    Args:
        bundle: What to run.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.plan = bundle.plan
        self.tensors = bundle.tensors
        self.stages = (0, *bundle.plan.stages)

    def _convolve(self, name: str, x: Floats, window: Window) -> Floats:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        if weight.dtype != np.int8:
            return float_convolution(x, weight, bias, window)
        acc = integer_convolution(x.astype(np.int64), weight, window)
        assert np.abs(acc).max() < 2**31
        return acc.astype(np.int32).astype(F32) * self.tensors[f"{name}.scale"] + bias

    def stem(self, image: NDArray[Any]) -> Floats:
        """One image, uint8 or normalised float32 (H, W, C), to the stream."""
        x = image
        if image.dtype == np.uint8:
            mean, std = (np.array(v, F32) for v in (self.plan.image.mean, self.plan.image.std))
            x = (image.astype(F32) * F32(1 / 255) - mean) * (F32(1) / std)
        for index, op in enumerate(self.plan.network.stem):
            if isinstance(op, StemConv):
                x = np.maximum(self._convolve(f"stem.{index}", x, op), F32(0))
            else:
                x = windows(x, op, padding=-np.inf).max((2, 3))
        return levels(x, 8) if self.plan.integer_stream else x

    def block(self, index: int, x: Floats, option: int) -> Floats:
        """One block's option: the stream (H, W, C) -> (H', W', C')."""
        plan = self.plan.network.blocks[index]
        chosen = Option.parse(plan.options[option])
        if chosen.is_skip and plan.shortcut is None:
            return x
        y = x
        if plan.shortcut is not None:
            y = self._convolve(f"blocks.{index}.shortcut", x, plan.shortcut)
        if not chosen.is_skip:
            y = self._branch(index, x, chosen) + y
        return levels(y, 8) if self.plan.integer_stream else np.maximum(y, F32(0))

    def _branch(self, index: int, x: Floats, option: Option) -> Floats:
        name, bits = f"blocks.{index}.{option.label}", option.bits
        inverse = self.tensors.get(f"{name}.input")
        if inverse is not None or bits > 8:
            x = x * self.tensors["stream.steps"][self.stages[index]] if self._integer() else x
        if inverse is not None:
            x = levels(x * inverse, bits)
        for position, conv in enumerate(self.plan.network.blocks[index].branch):
            if position:
                x = levels(x, bits) if bits <= 8 else np.maximum(x, F32(0))
            x = self._convolve(f"{name}.{position}", x, conv)
        return x

    def _integer(self) -> bool:
        return self.plan.integer_stream

    def pool(self, x: Floats, stage: int) -> Floats:
        """Means (C,) in the values that the stream stands for."""
        if not self.plan.integer_stream:
            return x.mean((0, 1), dtype=np.float64).astype(F32)
        total = x.astype(np.int64).sum((0, 1)).astype(F32)
        return total * (self.tensors["stream.steps"][stage] / F32(x.shape[0] * x.shape[1]))

    def leaned(self, said: Floats, lean: float | None) -> Floats:
        """Logits (K,) from what the gate's last layer says; no lean is the plan's own."""
        gate = self.plan.gate
        assert gate is not None
        bits = np.array([Option.parse(label).bits for label in self.plan.options], F32)
        weights = np.arange(len(bits), dtype=F32) / F32(len(bits) - 1)
        if gate.output == "harm":
            said = F32(-1000) * np.exp(np.minimum(said, F32(0)))
            weights = (bits / bits[-1]) ** 2
        return said + F32(gate.lean if lean is None else lean) * weights

    def run(
        self,
        image: NDArray[Any],
        decisions: NDArray[Any] | None = None,
        budget: float = 0,
        lean: float | None = None,
    ) -> tuple[Floats, list[int], float]:
        """Logits (N,), decisions (L,), and how close the closest decision was."""
        x, gate, made, margin = self.stem(image), _Gate(self, budget), [], np.inf
        for index, plan in enumerate(self.plan.network.blocks):
            choice = 0
            if plan.gated and decisions is not None:
                choice = int(decisions[len(made)])
            elif plan.gated and self.plan.gate is not None:
                said = gate.outputs(len(made), self.pool(x, self.stages[index]))
                logits = self.leaned(said, lean)
                choice = int(logits.argmax())
                margin = min(margin, float(np.diff(np.sort(logits)[-2:])[0]))
            if plan.gated:
                made.append(choice)
            x = self.block(index, x, choice)
        pooled = self.pool(x, self.stages[-1])
        return self.tensors["head.weight"] @ pooled + self.tensors["head.bias"], made, margin


class _Gate:
    """The gate's state for one image."""

    def __init__(self, network: Reference, budget: float) -> None:
        self._tensors, self._plan = network.tensors, network.plan.gate
        self._told: Any = 0
        if self._plan is not None and self._plan.budget_input:
            scaled = F32(np.log10(F32(budget)) / 1.5 + 1)
            self._told = self._linear_terms("gate.budget", scaled)
        self._hidden = self._cell = np.zeros(1 if self._plan is None else self._plan.width, F32)

    def _linear_terms(self, name: str, x: Any) -> Any:
        return self._tensors[f"{name}.weight"] * x + self._tensors[f"{name}.bias"]

    def _linear(self, name: str, x: Floats) -> Floats:
        return self._tensors[f"{name}.weight"] @ x + self._tensors[f"{name}.bias"]

    def outputs(self, block: int, pooled: Floats) -> Floats:
        assert self._plan is not None
        features = self._linear(f"gate.embed.{block}", pooled) + self._told
        if self._plan.kind == "feedforward":
            return self._linear(f"gate.out.{block}", np.maximum(features, 0))
        terms = self._tensors["gate.lstm.weight_ih"] @ features + self._tensors["gate.lstm.bias"]
        terms = terms + self._tensors["gate.lstm.weight_hh"] @ self._hidden
        entry, forget, new, leave = np.split(terms, 4)
        self._cell = _sigmoid(forget) * self._cell + _sigmoid(entry) * np.tanh(new)
        self._hidden = _sigmoid(leave) * np.tanh(self._cell)
        own = self._tensors.get("gate.block_bias")
        return self._linear("gate.out", self._hidden) + (0 if own is None else own[block])


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
