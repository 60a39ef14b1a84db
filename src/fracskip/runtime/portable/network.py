"""A network from images to logits, from one gated part to the next.

Levels and values are float32 tensors (B, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.options import Option
from fracskip.runtime.operations import (
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    NormOp,
    PoolOp,
)
from fracskip.runtime.plan import STREAM_BITS, NamedProgram, Part, Plan, integer_bits
from fracskip.runtime.portable.tensors import Tensors, exact_type, route

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


class _Grid:
    """Levels of an int8 stream between two parts."""

    def __init__(self, tensors: Tensors, part: int) -> None:
        self._step = tensors[f"parts.{part}.step"]
        zero = f"parts.{part}.zero"
        self._zero = float(tensors[zero]) if zero in tensors else 0.0

    def values(self, levels: Tensor) -> Tensor:
        """What levels, or means of them, stand for."""
        return (levels - self._zero) * self._step


class _Program:
    """Operations one after the other: (B, C, H, W) -> (B, C', H', W').

    Args:
        tensors: The bundle's.
        program: What they are.
        grid: Of the levels that it takes; None where it takes values.
    """

    def __init__(self, tensors: Tensors, program: NamedProgram, grid: _Grid | None = None) -> None:
        self._steps: list[tuple[tuple[int, ...], bool, Function]] = []
        self._grid = grid
        clamped = program.left_to_clamps(tensors)
        for position, op in enumerate(program.ops):
            act = "none" if position in clamped else getattr(op, "act", "none")
            name = f"{program.name}.{position}"
            raw = program.takes_levels(position, tensors)
            function = _function(tensors, name, op, program.bits, ACTS[act], raw)
            self._steps.append((op.inputs, raw, function))

    def __call__(self, x: Tensor) -> Tensor:
        """What it gives; no operations give what they take, levels as levels."""
        values = [x if self._grid is None or not self._steps else self._grid.values(x)]
        for inputs, raw, function in self._steps:
            values.append(function(*(x if raw else values[index] for index in inputs)))
        return values[-1]


def _function(
    tensors: Tensors, name: str, op: Any, bits: int, act: Callable[[Tensor], Tensor], raw: bool
) -> Function:
    """What an operation computes; `raw`: from levels as they are."""
    if isinstance(op, ConvOp) and bits:
        return _integer(tensors, name, op, bits, act, raw)
    if isinstance(op, ConvOp):
        return _float(tensors, name, op, act)
    if isinstance(op, PoolOp):
        return functools.partial(_pool, op)
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


def _padded(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    """Images with a border of (top, left, bottom, right)."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _pool(op: PoolOp, x: Tensor) -> Tensor:
    slides = (op.kernel, op.stride)
    if op.kind == "max":
        return F.max_pool2d(_padded(x, op.padding, -torch.inf), *slides)
    sums = _padded(x, op.padding)
    if op.count_padding:
        return F.avg_pool2d(sums, *slides)
    ones = _padded(torch.ones_like(x[:1, :1]), op.padding)
    total, count = (F.avg_pool2d(each, *slides, divisor_override=1) for each in (sums, ones))
    return total / count


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    pixels = F.layer_norm(x.permute(0, 2, 3, 1), gain.shape, gain, bias, eps)
    return pixels.permute(0, 3, 1, 2)


def _filters(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(O, kh, kw, I) as torch has it."""
    filters = weight.to(dtype).permute(0, 3, 1, 2)
    return filters.contiguous(memory_format=torch.channels_last)


def _float(tensors: Tensors, name: str, op: ConvOp, act: Callable[[Tensor], Tensor]) -> Function:
    weight, bias = _filters(tensors[f"{name}.weight"]), tensors[f"{name}.bias"]
    # What both sides have in common is torch's own.
    high, wide = (min(op.padding[side::2]) for side in (0, 1))
    around = [pad - common for pad, common in zip(op.padding, (high, wide) * 2, strict=True)]
    rest = (op.stride, (high, wide), op.dilation, op.groups)
    return lambda x: act(F.conv2d(_padded(x, around), weight, bias, *rest))


def _integer(
    tensors: Tensors, name: str, op: ConvOp, bits: int, act: Callable[[Tensor], Tensor], raw: bool
) -> Function:
    integers = tensors[f"{name}.weight"]
    dtype = exact_type(integers)
    weight = _filters(integers, dtype)
    scale, bias = (tensors[f"{name}.{kind}"][:, None, None] for kind in ("scale", "bias"))
    inverse = tensors[f"{name}.input"] if f"{name}.input" in tensors else None
    zero = float(tensors[f"{name}.zero"]) if f"{name}.zero" in tensors else 0.0
    rest = (op.stride, 0, op.dilation, op.groups)

    def to_own_levels(x: Tensor) -> Tensor:
        values = x.clone() if inverse is None else x * inverse
        return values.round_().add_(zero).clamp_(0, 2**bits - 1)

    def execute(x: Tensor) -> Tensor:
        levels = x if raw else to_own_levels(x)
        padded = _padded(levels, op.padding, zero)
        acc = F.conv2d(padded.to(dtype), weight, None, *rest)
        # In place, and not as one operation: each step rounds once.
        return act(acc.to(torch.float32).mul_(scale).add_(bias))

    return execute


class _Part:
    """One part, at every option.

    Args:
        part: The part.
        branches: Its programs: one an option, in order, None being skip.
        shortcut: What is added to them; None where that is the identity, or there is none.
        grid: Of the levels that it takes; None where it takes values.
        rounds: Whether it gives levels.
    """

    def __init__(
        self,
        part: Part,
        branches: Sequence[_Program | None],
        shortcut: _Program | None,
        grid: _Grid | None,
        rounds: bool,
    ) -> None:
        self.grid = grid
        self._branches, self._shortcut, self._rounds = branches, shortcut, rounds
        self._residual, self._skip_is_identity = part.residual, part.skip_is_identity
        self._acts = [ACTS[op.act] for op in part.after if isinstance(op, ActOp)]

    def execute(self, x: Tensor, option: int = 0) -> Tensor:
        """One option for all images: (B, C, H, W) -> (B, C', H', W')."""
        branch = self._branches[option]
        if branch is None:
            if self._skip_is_identity:
                return x
            assert self._residual
            y = self._shortcut_of(x)
        else:
            y = branch(x)
            y = y + self._shortcut_of(x) if self._residual else y
        for act in self._acts:
            y = act(y)
        return y.round().clamp_(0, 2**STREAM_BITS - 1) if self._rounds else y

    def _shortcut_of(self, x: Tensor) -> Tensor:
        return x if self._shortcut is None else self._shortcut(x)

    def pool(self, x: Tensor) -> Tensor:
        """The means of what it takes over height and width, (B, C)."""
        mean = x.mean((2, 3))
        return mean if self.grid is None else self.grid.values(mean)


class PortableNetwork:
    """A network's way from images to logits.

    Args:
        plan: The network's.
        tensors: The bundle's.

    Attributes:
        parts: All of them, in order.
    """

    def __init__(self, plan: Plan, tensors: Tensors) -> None:
        self._plan = plan
        self.parts: list[_Part] = []
        self._gated: list[_Part] = []
        # What is always executed before the first gated part, and after each.
        self._always: list[list[_Part]] = [[]]
        programs = iter(plan.programs)
        last = len(plan.network.parts) - 1
        for index, part in enumerate(plan.network.parts):
            grid = _Grid(tensors, index - 1) if plan.stream == "int8" and index else None
            rounds = plan.stream == "int8" and index < last
            skips = [None] if len(part.executed) < len(part.options) else []
            branches = [_Program(tensors, next(programs), grid) for _ in part.executed]
            shortcut = _Program(tensors, next(programs), grid) if part.shortcut else None
            made = _Part(part, [*skips, *branches], shortcut, grid, rounds)
            self.parts.append(made)
            if part.gated:
                self._gated.append(made)
                self._always.append([])
            else:
                self._always[-1].append(made)

    def _onward(self, after: int, x: Tensor) -> Tensor:
        for part in self._always[after]:
            x = part.execute(x)
        return x

    def begin(self, images: Tensor) -> Tensor:
        """What the first gated part takes of normalised images (B, C, H, W)."""
        return self._onward(0, images)

    def pool(self, gated: int, x: Tensor) -> Tensor:
        """What a gate sees of what its part takes: means over height and width, (B, C)."""
        return self._gated[gated].pool(x)

    def execute(self, gated: int, x: Tensor, choice: Tensor) -> Tensor:
        """A gated part, each image by its own option (B,), and what lies before the next."""
        return self._onward(gated + 1, route(x, choice, self._gated[gated].execute))

    def head(self, x: Tensor) -> Tensor:
        """The logits (B, N) from what the last part gives."""
        return x.flatten(1)

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """(part, option, what executes each convolution of its branch)."""
        found = []
        for part in self._plan.network.parts:
            for option in map(Option.parse, part.options):
                names = [] if option.is_skip else _names(part.branch, integer_bits(option))
                found.append((part.name, option.label, names))
        return found


def _names(ops: Sequence[Any], bits: int) -> list[str]:
    kind = f"torch_int{bits}" if bits else "torch_float32"
    return [kind for op in ops if isinstance(op, ConvOp)]
