"""What gives a layer its integers: `LsqQuantiser` or `PaperQuantiser`.

Shapes: B images, I and O channels in and out, H height, W width. A linear layer's input is
(..., I), its weights (O, I).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from fracskip.options import OptionSet
from fracskip.quant.affine import IntegerGrid, affine_parameters
from fracskip.quant.fake import fake_quantise, fake_quantise_affine
from fracskip.quant.observer import best_grid, best_step, update_range

PAPER_MOMENTUM = 0.9
SMALLEST_STEP = 2.0**-24  # a learned step can't reach zero or change its sign
SAMPLE_VALUES = 1 << 17  # activations looked at when a step is initialised
CLIPPING_PAYS = 255  # largest level up to which finer steps are worth clipping a few values
PACKED_BITS = 8  # what an int8 holds
STREAM_BITS = 8  # of an int8 stream; options from here up take its levels as they are


class Quantiser(Protocol):
    """What a layer asks of its quantiser. Slots count the quantised options of a set."""

    def activation(self, x: Tensor, slot: int) -> Tensor:
        """Fake-quantises the input, (B, I, H, W) or (..., I)."""
        ...

    def weight(self, weight: Tensor, slot: int) -> Tensor:
        """Fake-quantises the weights, (O, I, kh, kw) or (O, I)."""
        ...

    def observe(self, x: Tensor, weight: Tensor | None, slot: int) -> None:
        """Initialises the slot's ranges from one batch; without weights, that of activations."""
        ...


class LsqQuantiser(nn.Module):
    """Symmetric integers with a learned step per width: one per tensor, one per output channel.

    Activations are taken to follow a ReLU: negative values clip to 0, so the ReLU itself may be
    left out. Those of both signs have a zero point as well, an integer that stays where calibration
    put it. Steps start where the squared error is least.

    Args:
        options: The option set; its quantised options get one slot each.
        out_channels: Of the layer.
        levels_in: Whether the input is an int8 stream: widths from 8 bits up then take it as it
            is and have no activation step. Options ascend, so the other slots keep their index.
        signed_in: Whether the input has values of both signs.
    """

    activation_zero: Tensor | None

    def __init__(
        self,
        options: OptionSet,
        out_channels: int,
        levels_in: bool = False,
        signed_in: bool = False,
    ) -> None:
        super().__init__()
        widths = [option.bits for option in options if option.is_quantised]
        own = [bits for bits in widths if not (levels_in and bits >= STREAM_BITS)]
        self._activation_bounds = [IntegerGrid(bits, signed=False).bounds for bits in widths]
        self._weight_bounds = [IntegerGrid(bits, signed=True).bounds for bits in widths]
        self.activation_step = nn.Parameter(torch.ones(len(own), 1))
        self.weight_step = nn.Parameter(torch.ones(len(widths), out_channels))
        zero = torch.zeros(len(own), dtype=torch.int32) if signed_in else None
        self.register_buffer("activation_zero", zero)

    def activation_bounds(self, slot: int) -> tuple[int, int]:
        """Smallest and largest multiple of the step that a slot's activations take."""
        low, high = self._activation_bounds[slot]
        zero = self.input_zero(slot)
        return low - zero, high - zero

    def activation(self, x: Tensor, slot: int) -> Tensor:
        """See `Quantiser`."""
        step = self.activation_step[slot].clamp_min(SMALLEST_STEP)
        return fake_quantise(x, step, self.activation_bounds(slot))

    def weight(self, weight: Tensor, slot: int) -> Tensor:
        """See `Quantiser`."""
        step = per_channel(self.weight_step[slot].clamp_min(SMALLEST_STEP), weight)
        return fake_quantise(weight, step, self._weight_bounds[slot])

    def weight_grid(self, slot: int) -> tuple[Tensor, tuple[int, int]]:
        """A slot's steps of weights (O,), and the smallest and the largest integer."""
        step = self.weight_step[slot].detach().clamp_min(SMALLEST_STEP)
        return step, self._weight_bounds[slot]

    def input_step(self, slot: int) -> float:
        """The step of a slot's activations."""
        return float(self.activation_step[slot].detach().clamp_min(SMALLEST_STEP))

    def input_zero(self, slot: int) -> int:
        """The level that stands for 0 in a slot's activations."""
        return 0 if self.activation_zero is None else int(self.activation_zero[slot])

    @torch.no_grad()
    def integers(self, weight: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """The weights' integers, int8 (int16 above 8 bits) of their shape, and steps (O,)."""
        step = self.weight_step[slot].clamp_min(SMALLEST_STEP)
        low, high = self._weight_bounds[slot]
        q = (weight.float() * per_channel(step.reciprocal(), weight)).round().clamp(low, high)
        return q.to(torch.int8 if high < 1 << 7 else torch.int16), step

    @torch.no_grad()
    def observe(self, x: Tensor, weight: Tensor | None, slot: int) -> None:
        """See `Quantiser`."""
        if slot < len(self.activation_step):
            bounds = self._activation_bounds[slot]
            values = thinned(x) if bounds[1] <= CLIPPING_PAYS else extremes(x)
            if self.activation_zero is None:
                self.activation_step[slot] = best_step(values.reshape(1, -1), bounds)[0]
            else:
                step, zero = best_grid(values, bounds[1])
                self.activation_step[slot], self.activation_zero[slot] = step, zero
        if weight is not None:
            rows = weight.detach().float().flatten(1)
            self.weight_step[slot] = best_step(rows, self._weight_bounds[slot]).squeeze(1)


def thinned(x: Tensor) -> Tensor:
    """At most about `SAMPLE_VALUES` of a tensor's values, evenly spread: (n,) float32."""
    values = x.detach().float().reshape(-1)
    stride = max(1, values.numel() // SAMPLE_VALUES)
    # One that shares a factor with an image's width would take some of its columns alone.
    while math.gcd(stride, values.numel()) > 1:
        stride += 1
    return values[::stride]


def extremes(x: Tensor) -> Tensor:
    """The least and the largest of a tensor's values: (2,) float32."""
    return torch.stack(torch.aminmax(x.detach())).float()


class PaperQuantiser(nn.Module):
    """The paper's: affine, per tensor, min/max; one running activation range for all widths.

    Args:
        options: The option set.
    """

    activation_range: Tensor

    def __init__(self, options: OptionSet) -> None:
        super().__init__()
        self._bits = [option.bits for option in options if option.is_quantised]
        self.register_buffer("activation_range", torch.full((2,), torch.nan))

    def _fake(self, x: Tensor, low: float, high: float, slot: int) -> Tensor:
        bits = self._bits[slot]
        scale, zero_point = affine_parameters(low, high, bits)
        bounds = IntegerGrid(bits, signed=False).bounds
        step = torch.tensor(float(scale), dtype=x.dtype, device=x.device)
        return fake_quantise_affine(x, step, zero_point, bounds)

    def activation(self, x: Tensor, slot: int) -> Tensor:
        """See `Quantiser`. In training mode the running range follows the batch."""
        if self.training:
            update_range(self.activation_range, x, PAPER_MOMENTUM)
        low, high = self.activation_range.tolist()
        return self._fake(x, low, high, slot)

    def weight(self, weight: Tensor, slot: int) -> Tensor:
        """See `Quantiser`."""
        low, high = torch.stack(torch.aminmax(weight.detach())).tolist()
        return self._fake(weight, low, high, slot)

    def observe(self, x: Tensor, weight: Tensor | None, slot: int) -> None:
        """See `Quantiser`."""
        update_range(self.activation_range, x, PAPER_MOMENTUM)


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Values of each output channel (O,), shaped to go with weights (O, ...)."""
    return values.view(-1, *(1,) * (weight.dim() - 1))
