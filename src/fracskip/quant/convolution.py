"""A convolution that can execute at every width of an option set.

`FractionalConv2d` keeps its parent's parameter names, so a plain network's weights load into it.
One of two quantisers gives it the integers: `ModernQuantiser` or `PaperQuantiser`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.options import Option, OptionSet
from fracskip.quant.affine import IntegerGrid, affine_parameters
from fracskip.quant.fake import fake_quantise, fake_quantise_affine
from fracskip.quant.observer import best_step, update_range

PAPER_MOMENTUM = 0.9
SMALLEST_STEP = 2.0**-24  # a learned step can't reach zero or change its sign
SAMPLE_VALUES = 1 << 17  # activations looked at when a step is initialised
PACKED_BITS = 8  # what an int8 holds
STREAM_BITS = 8  # of an int8 stream; options from here up take its levels as they are


class Quantiser(Protocol):
    """What a convolution asks of its quantiser. Slots count the quantised options of a set."""

    def activation(self, x: Tensor, slot: int) -> Tensor:
        """Fake-quantises the input, (B, C, H, W)."""
        ...

    def weight(self, weight: Tensor, slot: int) -> Tensor:
        """Fake-quantises the weights, (O, I, kh, kw)."""
        ...

    def observe(self, x: Tensor, weight: Tensor, slot: int) -> None:
        """Initialises the slot's ranges from one batch, before the first use."""
        ...


class ModernQuantiser(nn.Module):
    """Symmetric integers with a learned step per width: one per tensor, one per output channel.

    Activations must follow a ReLU (negative values clip to 0, so the ReLU itself may be left
    out). Steps start where the squared error is least.

    Args:
        options: The option set; its quantised options get one slot each.
        out_channels: Of the convolution.
        levels_in: Whether the input is an int8 stream: widths from 8 bits up then take it as it
            is and have no activation step. Options ascend, so the other slots keep their index.
    """

    def __init__(self, options: OptionSet, out_channels: int, levels_in: bool = False) -> None:
        super().__init__()
        widths = [option.bits for option in options if option.is_quantised]
        own = [bits for bits in widths if not (levels_in and bits >= STREAM_BITS)]
        self._activation_bounds = [IntegerGrid(bits, signed=False).bounds for bits in widths]
        self._weight_bounds = [IntegerGrid(bits, signed=True).bounds for bits in widths]
        self.activation_step = nn.Parameter(torch.ones(len(own), 1))
        self.weight_step = nn.Parameter(torch.ones(len(widths), out_channels))

    def activation(self, x: Tensor, slot: int) -> Tensor:
        """See `Quantiser`."""
        step = self.activation_step[slot].clamp_min(SMALLEST_STEP)
        return fake_quantise(x, step, self._activation_bounds[slot])

    def weight(self, weight: Tensor, slot: int) -> Tensor:
        """See `Quantiser`."""
        step = self.weight_step[slot].clamp_min(SMALLEST_STEP)[:, None, None, None]
        return fake_quantise(weight, step, self._weight_bounds[slot])

    def input_step(self, slot: int) -> float:
        """The step of a slot's activations."""
        return float(self.activation_step[slot].detach().clamp_min(SMALLEST_STEP))

    @torch.no_grad()
    def integers(self, weight: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """The weights' integers, (O, I, kh, kw) int8 (int16 above 8 bits), and steps (O,)."""
        step = self.weight_step[slot].clamp_min(SMALLEST_STEP)
        low, high = self._weight_bounds[slot]
        q = (weight.float() * step.reciprocal()[:, None, None, None]).round().clamp(low, high)
        return q.to(torch.int8 if high < 1 << 7 else torch.int16), step

    @torch.no_grad()
    def observe(self, x: Tensor, weight: Tensor, slot: int) -> None:
        """See `Quantiser`."""
        if slot < len(self.activation_step):
            values = thinned(x).reshape(1, -1)
            self.activation_step[slot] = best_step(values, self._activation_bounds[slot])[0]
        rows = weight.detach().float().flatten(1)
        self.weight_step[slot] = best_step(rows, self._weight_bounds[slot]).squeeze(1)


def thinned(x: Tensor) -> Tensor:
    """At most about `SAMPLE_VALUES` of a tensor's values, evenly spread: (n,) float32."""
    values = x.detach().float().reshape(-1)
    return values[:: max(1, values.numel() // SAMPLE_VALUES)]


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

    def observe(self, x: Tensor, weight: Tensor, slot: int) -> None:
        """See `Quantiser`."""
        update_range(self.activation_range, x, PAPER_MOMENTUM)


class FractionalConv2d(nn.Conv2d):
    """A convolution that executes the option it is asked for.

    Made from a plain convolution with `FractionalConv2d.of`; `weight` keeps its name and value.
    """

    quantiser: ModernQuantiser | PaperQuantiser
    option_weight: nn.ParameterList
    _slots: dict[Option, int]
    _own: dict[Option, int]
    _executed: list[Option]
    _levels_in: bool

    @classmethod
    def of(
        cls,
        conv: nn.Conv2d,
        options: OptionSet,
        scheme: str,
        levels_in: bool = False,
        own_weights: bool = False,
    ) -> FractionalConv2d:
        """Converts a plain convolution.

        Args:
            conv: The convolution; its parameters are taken over, not copied.
            options: The option set.
            scheme: 'modern' or 'paper'.
            levels_in: Whether its input is an int8 stream ('modern' only).
            own_weights: Whether each option gets weights of its own, `option_weight`, which start
                as the convolution's; the top option's keep their name.
        """
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        new.weight, new.bias = conv.weight, conv.bias
        modern = scheme == "modern"
        quantiser = (
            ModernQuantiser(options, conv.out_channels, levels_in)
            if modern
            else PaperQuantiser(options)
        )
        new.quantiser = quantiser.to(conv.weight.device)
        new._slots = _slots(options)
        new._executed = [option for option in options if not option.is_skip]
        lower = new._executed[:-1] if own_weights else []
        new._own = {option: index for index, option in enumerate(lower)}
        new.option_weight = nn.ParameterList([conv.weight.detach().clone() for _ in lower])
        new._levels_in = levels_in
        return new

    @property
    def owns_weights(self) -> bool:
        """Whether each executed option has weights of its own."""
        return len(self._own) > 0

    def weight_of(self, option: Option) -> Tensor:
        """The weights that an option's integers are made of, (O, I, kh, kw)."""
        own = self._own.get(option)
        return self.weight if own is None else self.option_weight[own]

    def packable(self) -> dict[str, int]:
        """Weights that serve one option of at most 8 bits alone, by name: its quantiser's slot.

        Nothing but their integers is ever executed, so a file need not hold more.
        """
        if not isinstance(self.quantiser, ModernQuantiser):
            return {}
        served = {option: f"option_weight.{index}" for option, index in self._own.items()}
        if len(self._own) == len(self._executed) - 1:
            served[self._executed[-1]] = "weight"
        return {
            name: self._slots[option]
            for option, name in served.items()
            if option.is_quantised and option.bits <= PACKED_BITS
        }

    def takes_levels(self, option: Option) -> bool:
        """Whether the input is taken as it is because it is on an int8 stream's grid already."""
        return self._levels_in and option.bits >= STREAM_BITS

    def slot(self, option: Option) -> int:
        """The quantiser's slot of a quantised option."""
        return self._slots[option]

    def absorbs_relu(self, option: Option) -> bool:
        """Whether a ReLU before this convolution is superfluous: its grid clips negatives to 0."""
        return option.is_quantised and isinstance(self.quantiser, ModernQuantiser)

    def observe(self, x: Tensor, option: Option) -> None:
        """Initialises the option's ranges from the input (B, C, H, W)."""
        if option.is_quantised:
            self.quantiser.observe(x, self.weight_of(option), self._slots[option])

    def execute(
        self, x: Tensor, option: Option, gain: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Convolves at one option's width.

        Args:
            x: Input (B, I, H, W).
            option: Quantised or full.
            gain: Factor per output channel (O,), folded into the weights: a BatchNorm's.
            bias: Offset per output channel (O,).

        Returns:
            (B, O, H', W').
        """
        weight = self.weight_of(option)
        if option.is_quantised:
            slot = self._slots[option]
            if not self.takes_levels(option):
                x = self.quantiser.activation(x, slot)
            weight = self.quantiser.weight(weight, slot)
        if gain is not None:
            weight = weight * gain[:, None, None, None]
        if self.bias is not None:
            own = self.bias if gain is None else self.bias * gain
            bias = own if bias is None else bias + own
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def _slots(options: OptionSet) -> dict[Option, int]:
    quantised = [option for option in options if option.is_quantised]
    return {option: slot for slot, option in enumerate(quantised)}
