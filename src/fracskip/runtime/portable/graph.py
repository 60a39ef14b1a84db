"""Any other network: bundles of version 2.

Levels and values are float32 tensors (B, C, H, W) in channels-last memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.runtime.graph import (
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    FixedPart,
    GatedPart,
    GraphPlan,
    NormOp,
    PoolOp,
    executed,
    integer_bits,
    left_to_clamps,
)
from fracskip.runtime.portable.tensors import Tensors, exact_type, route, to_levels

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
}

Function = Callable[..., Tensor]


class _Program:
    """Operations one after the other: (B, C, H, W) -> (B, C', H', W').

    Args:
        tensors: The bundle's.
        name: Of its tensors.
        ops: The operations.
        bits: Width of the convolutions' integers; 0 is float32.
    """

    def __init__(self, tensors: Tensors, name: str, ops: Sequence[Any], bits: int = 0) -> None:
        self.steps: list[tuple[tuple[int, ...], Function]] = []
        clamped = left_to_clamps(name, ops, bits, tensors)
        for position, op in enumerate(ops):
            act = "none" if position in clamped else getattr(op, "act", "none")
            function = _function(tensors, f"{name}.{position}", op, bits, ACTS[act])
            self.steps.append((op.inputs, function))

    def __call__(self, x: Tensor) -> Tensor:
        values = [x]
        for inputs, function in self.steps:
            values.append(function(*(values[index] for index in inputs)))
        return values[-1]


def _function(
    tensors: Tensors, name: str, op: Any, bits: int, act: Callable[[Tensor], Tensor]
) -> Function:
    """What an operation computes."""
    if isinstance(op, ConvOp):
        return _integer(tensors, name, op, bits, act) if bits else _float(tensors, name, op, act)
    if isinstance(op, PoolOp):
        window = (op.kernel, op.stride, op.padding)
        if op.kind == "max":
            return lambda x: F.max_pool2d(x, *window)
        return lambda x: F.avg_pool2d(x, *window, count_include_pad=op.count_padding)
    if isinstance(op, ActOp):
        return act
    if isinstance(op, BinaryOp):
        return torch.add if op.op == "add" else torch.mul
    if isinstance(op, AffineOp):
        gain, bias = (tensors[f"{name}.{kind}"] for kind in ("gain", "bias"))
        if isinstance(op, NormOp):
            return lambda x: _layer_norm(x, gain, bias, op.eps)
        return lambda x: x * gain[:, None, None] + bias[:, None, None]
    return lambda x: x.mean((2, 3), keepdim=True)


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    pixels = F.layer_norm(x.permute(0, 2, 3, 1), gain.shape, gain, bias, eps)
    return pixels.permute(0, 3, 1, 2)


def _filters(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(O, kh, kw, I) as torch has it."""
    filters = weight.to(dtype).permute(0, 3, 1, 2)
    return filters.contiguous(memory_format=torch.channels_last)


def _float(tensors: Tensors, name: str, op: ConvOp, act: Callable[[Tensor], Tensor]) -> Function:
    weight, bias = _filters(tensors[f"{name}.weight"]), tensors[f"{name}.bias"]
    rest = (op.stride, op.padding, op.dilation, op.groups)
    return lambda x: act(F.conv2d(x, weight, bias, *rest))


def _integer(
    tensors: Tensors, name: str, op: ConvOp, bits: int, act: Callable[[Tensor], Tensor]
) -> Function:
    integers = tensors[f"{name}.weight"]
    dtype = exact_type(integers)
    weight = _filters(integers, dtype)
    scale, bias = (tensors[f"{name}.{kind}"][:, None, None] for kind in ("scale", "bias"))
    inverse = tensors[f"{name}.input"] if f"{name}.input" in tensors else None
    zero = float(tensors[f"{name}.zero"]) if f"{name}.zero" in tensors else 0.0
    high, wide = op.padding
    rest = (op.stride, 0, op.dilation, op.groups)

    def execute(x: Tensor) -> Tensor:
        values = x.clone() if inverse is None else x * inverse
        if zero:
            levels = values.round_().add_(zero).clamp_(0, 2**bits - 1)
        else:
            levels = to_levels(values, bits)
        padded = F.pad(levels, (wide, wide, high, high), value=zero)
        acc = F.conv2d(padded.to(dtype), weight, None, *rest)
        # In place, and not as one operation: each step rounds once.
        return act(acc.to(torch.float32).mul_(scale).add_(bias))

    return execute


class _Part:
    """Every option of one gated part."""

    def __init__(self, plan: GraphPlan, part: GatedPart, tensors: Tensors, name: str) -> None:
        self._part = part
        self._shortcut = _Program(tensors, f"{name}.shortcut", part.shortcut)
        self._after = _Program(tensors, f"{name}.after", part.after)
        options = [
            _Program(tensors, f"{name}.{option.label}", part.branch, integer_bits(option))
            for option in executed(plan.options)
        ]
        skips = [None] if plan.option_set.can_skip else []
        self._branches: list[_Program | None] = [*skips, *options]

    def execute(self, x: Tensor, option: int) -> Tensor:
        """One option for all images: (B, C, H, W) -> (B, C', H', W')."""
        branch = self._branches[option]
        if branch is None:
            return x if self._part.hands_on else self._after(self._shortcut(x))
        y = branch(x)
        return self._after(y + self._shortcut(x)) if self._part.can_skip else y


class GraphTrunk:
    """See `Trunk`.

    Args:
        plan: The network's.
        tensors: The bundle's.
    """

    def __init__(self, plan: GraphPlan, tensors: Tensors) -> None:
        self._plan = plan
        self._gated: list[_Part] = []
        # What is always executed before the first gated part, and after each.
        self._always: list[list[_Program]] = [[]]
        for index, part in enumerate(plan.network.parts):
            name = f"parts.{index}"
            if isinstance(part, FixedPart):
                self._always[-1].append(_Program(tensors, name, part.ops))
            else:
                self._gated.append(_Part(plan, part, tensors, name))
                self._always.append([])

    def _onward(self, after: int, x: Tensor) -> Tensor:
        for program in self._always[after]:
            x = program(x)
        return x

    def begin(self, images: Tensor) -> Tensor:
        """See `Trunk.begin`."""
        return self._onward(0, images)

    def pool(self, gated: int, x: Tensor) -> Tensor:
        """See `Trunk.pool`."""
        return x.mean((2, 3))

    def execute(self, gated: int, x: Tensor, choice: Tensor) -> Tensor:
        """See `Trunk.execute`."""
        return self._onward(gated + 1, route(x, choice, self._gated[gated].execute))

    def head(self, x: Tensor) -> Tensor:
        """See `Trunk.head`."""
        return x.flatten(1)

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """See `Trunk.kernels`."""
        found = []
        for part in self._plan.network.parts:
            if isinstance(part, FixedPart):
                count = sum(isinstance(op, ConvOp) for op in part.ops)
                found.append((part.name, "always", ["torch_float32"] * count))
                continue
            count = sum(isinstance(op, ConvOp) for op in part.branch)
            for option in self._plan.option_set:
                bits = integer_bits(option)
                kind = f"torch_int{bits}" if bits else "torch_float32"
                found.append((part.name, option.label, [] if option.is_skip else [kind] * count))
        return found
