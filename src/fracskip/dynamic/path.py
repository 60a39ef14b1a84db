"""A network's forward pass on one path for all images, where the path is data and not control flow.

`DynamicNetwork.forward` asks Python which option a block executes. A GPU that is to be handed a
whole training step at once (a CUDA graph, `training.captured`) can't ask: its kernels and addresses
are fixed, only values change. So here every block selects its option's weights, steps and
statistics by index and executes once, whatever the index is; a skipped block executes too, and its
result is left out.

Shapes: L gated blocks, K options, R executed ones, O output channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.dynamic.block import STREAM_OPTIONS, FractionalBlock
from fracskip.dynamic.network import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.options import OptionSet
from fracskip.quant import fused
from fracskip.quant.affine import IntegerGrid
from fracskip.quant.convolution import SMALLEST_STEP, FractionalConv2d, ModernQuantiser
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.stream import STREAM_BOUNDS

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


def _levels(x: Tensor, step: Tensor, numbers: Tensor, into: torch.dtype) -> Tensor:
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


def _levels_of_sum(x: Tensor, shortcut: Tensor, step: Tensor, numbers: Tensor) -> Tensor:
    """Of x + shortcut, both flat."""
    return _levels(x.float() + shortcut, step, numbers, torch.float32)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _run(function: Callable[..., Any], *tensors: Tensor, **more: Any) -> Tensor:
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


class _Unit:
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
        # Units of one kind are folded together.
        self.eps = norm.eps
        self.kind = (conv.out_channels, conv.weight[0].numel(), *self.sizes[:3])

    @property
    def table(self) -> Tensor:
        """What each option means in numbers (K, n)."""
        return torch.tensor(self._by_option)

    def execute(self, x: Tensor, ready: tuple[Tensor, Tensor, Tensor | None, Tensor]) -> Tensor:
        """Convolves with what `_fold` made ready."""
        conv = self._conv
        weight, bias, step, numbers = ready
        if step is not None:
            low, high, factor, plain, least = numbers.unbind()
            # A step is shared by all values, whose number depends on the batch.
            numbers = torch.stack([low, high, factor * x.numel() ** -0.5, plain, least])
            x = _run(_levels, x, step, numbers, into=_narrow_type(x))
        elif self._positive:
            x = F.relu(x)
        return F.conv2d(x, weight.view_as(conv.weight), bias, conv.stride, conv.padding)


def _fold(
    units: Sequence[_Unit], values: Sequence[Sequence[Tensor]], rows: Tensor
) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
    """Weights, offsets and activations' steps of units of one kind, all at once.

    Args:
        units: So many, U.
        values: Of each unit's pieces.
        rows: Of their tables, for the path's options (U, n).

    Returns:
        Of each unit: fake-quantised weights with the norm folded in (O, n), offsets (O,), the
        activations' step or None, and their numbers (5,).
    """
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
    means = torch.stack([unit.means for unit in units])
    variances = torch.stack([unit.variances for unit in units])
    scale = _pick(gain.view(len(units), -1, count), row)
    scale = scale * torch.rsqrt(_pick(variances, row) + units[0].eps)
    bias = _pick(offset.view(len(units), -1, count), row) - _pick(means, row) * scale
    steps: Sequence[Tensor | None] = [None] * len(units)
    if own.shape[1]:
        step = _pick(own[..., None], own_slot)[:, 0].clamp_min(SMALLEST_STEP)
        steps = torch.where(of_input[:, 3] > 0, 1.0, step).unbind()
    folded = (weight * scale[..., None]).unbind()
    numbers = torch.cat([of_input, least], 1).unbind()
    return list(zip(folded, bias.unbind(), steps, numbers, strict=True))


class _Plain:
    """A plain convolution with a BatchNorm whose statistics stand still."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        self._conv, self._norm = conv, norm
        self.pieces = [
            Piece((cast(nn.Parameter, value),)) for value in (conv.weight, norm.weight, norm.bias)
        ]

    def execute(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        conv, norm = self._conv, self._norm
        weight, gain, offset = values
        x = F.conv2d(x, weight.view_as(conv.weight), None, conv.stride, conv.padding)
        return F.batch_norm(x, norm.running_mean, norm.running_var, gain, offset, eps=norm.eps)


class _Block:
    """A block's branch and shortcut."""

    def __init__(self, block: FractionalBlock, index: int) -> None:
        self.stage, self.index = block.stage, index
        self.can_skip = block.options.can_skip
        self.units = [
            _Unit(conv, norm, block.options, index, positive=position > 0)
            for position, (conv, norm) in enumerate(block.units)
        ]
        self.narrow: _Unit | None = None
        self.plain: _Plain | None = None
        if block.projection is not None:
            conv, norm = block.projection
            if isinstance(conv, FractionalConv2d) and isinstance(norm, FractionalBatchNorm2d):
                self.narrow = _Unit(conv, norm, STREAM_OPTIONS, ALWAYS, positive=False)
            else:
                self.plain = _Plain(conv, norm)


class PathForward:
    """A network's logits for images that all take one path, the path being data.

    BatchNorm statistics are those that the network has now.

    Args:
        net: A network with 'modern' quantisation.

    Attributes:
        pieces: The parameters that `__call__` wants, piece by piece.

    Raises:
        ConfigError: if the quantisation is another.
    """

    def __init__(self, net: DynamicNetwork) -> None:
        self._net = net
        backbone = net.backbone
        self._stem = _Plain(backbone.conv1, backbone.bn1)
        self._blocks = [_Block(block, index) for index, block in enumerate(net.blocks)]
        self._first: list[_Plain] = []
        if net.first_block is not None:
            self._blocks.insert(0, _Block(net.first_block, ALWAYS))
        else:
            (_, first), *_ = backbone.named_blocks()
            self._first = [
                _Plain(first.get_submodule(conv), first.get_submodule(norm))
                for conv, norm in first.branch
            ]
        self._units = [
            unit
            for block in self._blocks
            for unit in (*block.units, *([block.narrow] if block.narrow else []))
        ]
        parts: list[_Plain | _Unit] = [self._stem, *self._first]
        parts += [block.plain for block in self._blocks if block.plain]
        self._where: dict[int, slice] = {}
        self.pieces: list[Piece] = []
        for part in (*parts, *self._units):
            self._where[id(part)] = slice(len(self.pieces), len(self.pieces) + len(part.pieces))
            self.pieces += part.pieces
        fc = (backbone.fc.weight, backbone.fc.bias)
        self.pieces += [Piece((cast(nn.Parameter, value),)) for value in fc]
        if net.stream is not None:
            self.pieces.append(Piece((net.stream.steps,)))
        tables = [unit.table for unit in self._units]
        wide, high = max(t.shape[1] for t in tables), max(t.shape[0] for t in tables)
        device = backbone.fc.weight.device
        padded = [F.pad(t, (0, wide - t.shape[1], 0, high - t.shape[0])) for t in tables]
        self._tables = torch.stack(padded).to(device)
        of = {id(unit): block.index for block in self._blocks for unit in block.units}
        # What every path executes stands behind the gated blocks, and has one option.
        blocks = [of.get(id(unit), ALWAYS) % (len(net.blocks) + 1) for unit in self._units]
        self._of_block = torch.tensor(blocks, device=device)
        self._each = torch.arange(len(self._units), device=device)
        kinds: dict[Any, list[int]] = {}
        for index, unit in enumerate(self._units):
            kinds.setdefault(unit.kind, []).append(index)
        self._kinds = {
            tuple(members): torch.tensor(members, device=device) for members in kinds.values()
        }
        self._stream_numbers = torch.tensor([*STREAM_BOUNDS, 0.0, 0.0, 0.0], device=device)
        self._stream_factor = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0], device=device)

    def __call__(self, values: Sequence[Tensor], images: Tensor, path: Tensor) -> Tensor:
        """The logits (B, N).

        Args:
            values: Of each piece, flat: what was taken of its parameters.
            images: Normalised (B, C, H, W).
            path: Index of each gated block's option (L).
        """
        net = self._net
        rows = self._tables[self._each, F.pad(path, (0, 1))[self._of_block]]
        taken = {key: values[where] for key, where in self._where.items()}
        ready: dict[int, Any] = {}
        for members, where in self._kinds.items():
            units = [self._units[index] for index in members]
            found = _fold(units, [taken[id(unit)] for unit in units], rows[where])
            ready.update(zip(map(id, units), found, strict=True))
        steps = None
        if net.stream is not None:
            steps = values[-1]
            values = values[:-1]
        skipped = path == 0

        def emit(y: Tensor, stage: int, shortcut: Tensor | None = None) -> Tensor:
            if steps is None:
                return F.relu(y if shortcut is None else y + shortcut)
            step = steps[stage].clamp_min(SMALLEST_STEP)
            numbers = self._stream_numbers + self._stream_factor * fused.step_factor(
                y.numel(), STREAM_BOUNDS
            )
            if shortcut is None:
                return _run(_levels, y, step, numbers, into=torch.float32)
            return _run(_levels_of_sum, y, shortcut, step, numbers)

        def run(unit: _Unit, x: Tensor) -> Tensor:
            return unit.execute(x, ready[id(unit)])

        x = F.relu(self._stem.execute(images, taken[id(self._stem)]))
        if steps is not None:
            x = emit(x, 0)
        if self._first:
            y = x
            for position, plain in enumerate(self._first):
                y = plain.execute(F.relu(y) if position else y, taken[id(plain)])
            x = F.relu(y + x)
        for block in self._blocks:
            y = x
            for unit in block.units:
                y = run(unit, y)
            shortcut = x
            if block.narrow is not None:
                shortcut = run(block.narrow, x)
            elif block.plain is not None:
                shortcut = block.plain.execute(x, taken[id(block.plain)])
            leaves = block.can_skip and block.index != ALWAYS
            if leaves and shortcut is not x:
                y = y.masked_fill(skipped[block.index], 0.0)
            out = emit(y, block.stage, shortcut)
            if leaves and shortcut is x:
                out = torch.where(skipped[block.index], x, out)
            x = out
        *_, weight, bias = values
        return F.linear(x.mean((2, 3)), weight.view_as(net.backbone.fc.weight), bias)
