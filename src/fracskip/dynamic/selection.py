"""A convolution, its norm and its quantiser at an option that is data: selected by index.

What `dynamic.path` is made of. Every unit says which parameters it takes (`Piece`) and what each of
its options means in numbers; of the path's option it gets a row.

Shapes: K options, R executed ones, O output channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.errors import ConfigError
from fracskip.options import OptionSet
from fracskip.quant import fused
from fracskip.quant.affine import IntegerGrid
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import SMALLEST_STEP, ModernQuantiser

ALWAYS = -1  # the block of what every path executes


@dataclass(frozen=True)
class Piece:
    """Parameters that a pass takes together.

    Attributes:
        parameters: Either all are taken, one after the other, or one of them (`one_of`).
        block: Whose option they depend on; `ALWAYS` if on none.
        one_of: Whether they are one tensor for each executed option, of which the path's is taken.
        live: For each option, which of the parameters have a part in what is executed.
    """

    parameters: tuple[nn.Parameter, ...]
    block: int = ALWAYS
    one_of: bool = False
    live: tuple[tuple[bool, ...], ...] = ()


def on_grid(x: Tensor, step: Tensor, low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """`quant.fake.fake_quantise` with bounds that are data. All arguments broadcast against x.

    Args:
        x: float32 values.
        step: Positive.
        low: Smallest integer.
        high: Largest integer.
        factor: Of the step's gradient.
    """
    still = step.detach()
    step = still + (step - still) * factor
    q = (x * still.reciprocal()).round().clamp(low, high)
    inside = (x > low * still) & (x < high * still)
    # Inside the grid, rounding passes the gradient; outside, the value is the bound's.
    moving = torch.where(inside, x * step.reciprocal(), q)
    return (moving + (q - moving).detach()) * step


def _pick(rows: Tensor, taken: Tensor) -> Tensor:
    """The rows (..., n, O) that one-hots (..., n) name; exact, and its gradient is no scatter."""
    return torch.where(taken[..., None] > 0, rows, 0.0).sum(-2)


def levels(x: Tensor, step: Tensor, numbers: Tensor, into: torch.dtype) -> Tensor:
    """Fake-quantised activations (any number), or what is taken as it is. To be compiled: one loop.

    Args:
        x: Values, flat.
        step: Positive, ().
        numbers: Smallest and largest integer, the step's factor, whether values are taken as they
            are, and what they are at least then: (5,).
        into: The result's type.
    """
    low, high, factor, plain, least = numbers.unbind()
    wide = x.float()
    y = on_grid(wide, step, low, high, factor)
    return torch.where(plain > 0, torch.where(wide > least, wide, least), y).to(into)


def levels_of_sum(x: Tensor, shortcut: Tensor, step: Tensor, numbers: Tensor) -> Tensor:
    """Of x + shortcut, both flat."""
    return levels(x.float() + shortcut, step, numbers, torch.float32)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def run_pass(function: Callable[..., Any], *tensors: Tensor, **more: Any) -> Tensor:
    """A pass over activations (B, C, H, W), compiled on a GPU; what is no activation comes last."""
    x = tensors[0]
    if not x.is_cuda:
        return function(*tensors, **more)  # type: ignore[no-any-return]
    order = (0, 2, 3, 1)
    large = [t.permute(order).reshape(-1) if t.dim() == 4 else t for t in tensors]
    # Autocast has no part in it, and each of its states would be compiled for itself.
    with torch.autocast("cuda", enabled=False):
        flat = _compiled(function)(*large, **more)
    return flat.view([x.shape[axis] for axis in order]).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _narrow_type(x: Tensor) -> torch.dtype:
    """What a convolution of x would cast it to."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class SelectingUnit:
    """A convolution and its norm, at an option that is data."""

    def __init__(
        self,
        conv: FractionalConv2d,
        norm: FractionalBatchNorm2d,
        options: OptionSet,
        block: int,
        positive: bool,
    ) -> None:
        quantiser = conv.quantiser
        if not isinstance(quantiser, ModernQuantiser):
            raise ConfigError(
                "steps can be recorded with quant.scheme 'modern' only, this network's is 'paper': "
                "set runtime.capture to false"
            )
        self._conv, self._positive = conv, positive
        executed = [option for option in options if not option.is_skip]
        own = conv.owns_weights
        rows = len(norm.option_weight)
        steps = len(quantiser.activation_step)
        self._slots, self._rows = len(quantiser.weight_step), rows + 1

        def live(uses: Callable[[Any], Sequence[bool]]) -> tuple[tuple[bool, ...], ...]:
            count = len(list(uses(executed[0])))
            return tuple(
                tuple(uses(option)) if not option.is_skip else (False,) * count
                for option in options
            )

        def slot(option: Any) -> int:
            return conv.slot(option) if option.is_quantised else -1

        def steps_own(option: Any) -> bool:
            return 0 <= slot(option) < steps and not conv.takes_levels(option)

        lower = {option: index for index, option in enumerate(executed[:rows])}
        weights = (*conv.option_weight, conv.weight)
        self.pieces = [
            Piece(
                weights,
                block,
                own,
                live(lambda o: [not own or w is conv.weight_of(o) for w in weights]),
            ),
            Piece((quantiser.weight_step,), block, False, live(lambda o: [o.is_quantised])),
            Piece((quantiser.activation_step,), block, False, live(lambda o: [steps_own(o)])),
            *(
                Piece(pair, block, False, live(lambda o: [o in lower, o not in lower]))
                for pair in ((norm.option_weight, norm.weight), (norm.option_bias, norm.bias))
            ),
        ]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.means = torch.cat([norm.option_mean, norm.running_mean[None]])
        self.variances = torch.cat([norm.option_var, norm.running_var[None]])

        def numbers(option: Any, signed: bool, values: int, plain: bool) -> list[float]:
            if plain:
                return [0.0, 1.0, 1.0, 1.0]
            low, high = IntegerGrid(option.bits, signed=signed).bounds
            return [low, high, fused.step_factor(values, (low, high)), 0.0]

        def hot(index: int, count: int) -> list[float]:
            return [float(index == other) for other in range(count)]

        self.sizes = [self._rows, self._slots, steps, 4, 4, 1]
        self._by_option = [
            [
                *hot(lower.get(option, rows), rows + 1),
                *hot(slot(option), self._slots),
                *hot(slot(option), steps),
                *numbers(option, True, conv.weight[0].numel(), not option.is_quantised),
                *numbers(option, False, 1, not steps_own(option)),
                0.0 if positive else -torch.inf,
            ]
            for option in (o if not o.is_skip else executed[0] for o in options)
        ]
        # Units of one kind can be one group.
        self.eps = norm.eps
        self.kind = (conv.out_channels, conv.weight[0].numel(), *self.sizes[:3])

    @property
    def table(self) -> Tensor:
        """What each option means in numbers (K, n)."""
        return torch.tensor(self._by_option)

    def execute(self, x: Tensor, ready: tuple[Tensor, Tensor, Tensor | None, Tensor]) -> Tensor:
        """Convolves with what `UnitGroup.fold` made ready."""
        conv = self._conv
        weight, bias, step, numbers = ready
        if step is not None:
            low, high, factor, plain, least = numbers.unbind()
            # A step is shared by all values, whose number depends on the batch.
            numbers = torch.stack([low, high, factor * x.numel() ** -0.5, plain, least])
            x = run_pass(levels, x, step, numbers, into=_narrow_type(x))
        elif self._positive:
            x = F.relu(x)
        return F.conv2d(x, weight.view_as(conv.weight), bias, conv.stride, conv.padding)


class UnitGroup:
    """Units of one kind, whose weights are made ready all at once.

    Args:
        units: So many, U. Their norms' statistics are taken as they are now.
    """

    def __init__(self, units: Sequence[SelectingUnit]) -> None:
        self.units = list(units)
        self._means = torch.stack([unit.means for unit in units])
        self._variances = torch.stack([unit.variances for unit in units])

    def fold(
        self, values: Sequence[Sequence[Tensor]], rows: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
        """What each unit's `execute` wants.

        Args:
            values: Of each unit's pieces.
            rows: Of their tables, for the path's options (U, n).

        Returns:
            Of each unit: fake-quantised weights with the norm folded in (O, n), offsets (O,), the
            activations' step or None, and their numbers (5,).
        """
        units = self.units
        count, width, *_ = units[0].kind
        weight, weight_step, own, gain, offset = (
            torch.stack(list(each)) for each in zip(*values, strict=True)
        )
        row, slot, own_slot, of_weight, of_input, least = torch.split(
            rows[:, : sum(units[0].sizes)], units[0].sizes, 1
        )
        weight = weight.view(len(units), count, width)
        if weight_step.shape[1]:
            low, high, factor, plain = (n[:, None, None] for n in of_weight.unbind(1))
            step = _pick(weight_step.view(len(units), -1, count), slot).clamp_min(SMALLEST_STEP)
            step = torch.where(plain > 0, 1.0, step[..., None])
            weight = torch.where(plain > 0, weight, on_grid(weight, step, low, high, factor))
        scale = _pick(gain.view(len(units), -1, count), row)
        scale = scale * torch.rsqrt(_pick(self._variances, row) + units[0].eps)
        bias = _pick(offset.view(len(units), -1, count), row) - _pick(self._means, row) * scale
        steps: Sequence[Tensor | None] = [None] * len(units)
        if own.shape[1]:
            step = _pick(own[..., None], own_slot)[:, 0].clamp_min(SMALLEST_STEP)
            steps = torch.where(of_input[:, 3] > 0, 1.0, step).unbind()
        folded = (weight * scale[..., None]).unbind()
        numbers = torch.cat([of_input, least], 1).unbind()
        return list(zip(folded, bias.unbind(), steps, numbers, strict=True))


class PlainUnit:
    """A plain convolution with a BatchNorm whose statistics stand still."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        self._conv, self._norm = conv, norm
        self.pieces = [
            Piece((cast(nn.Parameter, value),)) for value in (conv.weight, norm.weight, norm.bias)
        ]

    def execute(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Convolves and normalises (B, C, H, W); `values` are the pieces'."""
        conv, norm = self._conv, self._norm
        weight, gain, offset = values
        x = F.conv2d(x, weight.view_as(conv.weight), None, conv.stride, conv.padding)
        return F.batch_norm(x, norm.running_mean, norm.running_var, gain, offset, eps=norm.eps)
