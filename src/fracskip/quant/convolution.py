"""Layers that can execute at every width of an option set.

`FractionalConv2d` and `FractionalLinear` keep their parents' parameter names, so a plain network's
weights load into them. A quantiser gives them the integers.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.options import Option, OptionSet
from fracskip.quant.quantisers import (
    PACKED_BITS,
    STREAM_BITS,
    LsqQuantiser,
    PaperQuantiser,
    per_channel,
)
from fracskip.quant.rounding import WIDEST, compensated, input_rows


class FractionalLayer(nn.Module):
    """What the layers share: weights, a quantiser and what an option makes of both.

    Made from a plain layer with `of`; `weight` keeps its name and value.
    """

    OWN = ("quantiser", "option_weight")  # what it has beside a plain layer's

    weight: Any  # torch's own layers declare them differently
    bias: Any
    quantiser: LsqQuantiser | PaperQuantiser
    option_weight: nn.ParameterList
    _slots: dict[Option, int]
    _own: dict[Option, int]
    _executed: list[Option]
    _levels_in: bool
    _signed_in: bool
    _channels: int  # axis of an output
    _plain: list[Tensor]
    _seen: list[Tensor]

    @classmethod
    def of(
        cls,
        layer: Any,
        options: OptionSet,
        scheme: str,
        levels_in: bool = False,
        weights_per_option: bool = False,
        signed_in: bool = False,
    ) -> Self:
        """Converts a plain layer of the parent's kind.

        Args:
            layer: The layer; its parameters are taken over, not copied.
            options: The option set.
            scheme: 'lsq' or 'paper'.
            levels_in: Whether its input is an int8 stream ('lsq' only).
            weights_per_option: Whether each option gets its own, `option_weight`, which start
                as the layer's; the top option's keep their name.
            signed_in: Whether its input has values of both signs; else it follows a ReLU.
        """
        new = cls._like(layer)
        new.weight, new.bias = layer.weight, layer.bias
        lsq = scheme == "lsq"
        quantiser = (
            LsqQuantiser(options, len(layer.weight), levels_in, signed_in)
            if lsq
            else PaperQuantiser(options)
        )
        new.quantiser = quantiser.to(layer.weight.device)
        new._slots = _slots(options)
        new._executed = [option for option in options if not option.is_skip]
        lower = new._executed[:-1] if weights_per_option else []
        new._own = {option: index for index, option in enumerate(lower)}
        new.option_weight = nn.ParameterList([layer.weight.detach().clone() for _ in lower])
        new._levels_in, new._signed_in = levels_in, signed_in
        new._plain, new._seen = [], []
        return new

    @classmethod
    def _like(cls, layer: Any) -> Self:
        """A layer of the same geometry, on the meta device."""
        raise NotImplementedError

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation with other weights."""
        raise NotImplementedError

    def plain(self) -> nn.Module:
        """The plain layer that it was made of, with its weights."""
        raise NotImplementedError

    def weight_of(self, option: Option) -> Tensor:
        """The weights that an option's integers are made of, of the layer's own shape."""
        own = self._own.get(option)
        weight: Tensor = self.weight if own is None else self.option_weight[own]
        return weight

    def packable(self) -> dict[str, int]:
        """Weights that serve one option of at most 8 bits alone, by name: its quantiser's slot.

        Nothing but their integers is ever executed, so a file need not hold more.
        """
        if not isinstance(self.quantiser, LsqQuantiser):
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
        """Whether a ReLU before this layer is superfluous: its grid clips negatives to 0."""
        lsq = isinstance(self.quantiser, LsqQuantiser)
        return option.is_quantised and lsq and not self._signed_in

    @property
    def owns_weights(self) -> bool:
        """Whether its weights serve one option alone, and so can be those that it executes."""
        return len(self._executed) == 1 and isinstance(self.quantiser, LsqQuantiser)

    @torch.no_grad()
    def compensate(self, x: Tensor, option: Option) -> None:
        """Moves an option's weights to the grid, so that its output changes least.

        See `fracskip.quant.rounding`. Layers of very many inputs are left as they are.

        Args:
            x: A batch that it takes.
            option: The option, whose ranges are initialised.
        """
        assert isinstance(self.quantiser, LsqQuantiser)
        slot, held = self._slots[option], self.weight_of(option)
        if held[0].numel() > WIDEST:
            return
        if not self.takes_levels(option):
            x = self.quantiser.activation(x, slot)
        rows = input_rows(self, x)  # type: ignore[arg-type]
        grouped = held.reshape(len(rows), -1, rows.shape[2])
        step, bounds = self.quantiser.weight_grid(slot)
        found = compensated(grouped, rows, step.view(grouped.shape[:2]), bounds)
        held.copy_(found.view(held.shape))

    @property
    def owns_bias(self) -> bool:
        """Whether it has an offset that serves one option alone."""
        return self.bias is not None and len(self._executed) == 1

    def record(self, y: Tensor) -> None:
        """Takes note of a batch of what the plain layer gives.

        Until `forget`, `estimate` takes the same batches in the same order.
        """
        self._plain.append(self._mean(y))

    def forget(self) -> None:
        """Ends what `record` began."""
        self._plain, self._seen = [], []

    def _mean(self, y: Tensor) -> Tensor:
        """Of each channel of an output, (O,)."""
        return y.mean([axis for axis in range(y.dim()) if axis != self._channels % y.dim()])

    def estimate(self, x: Tensor, option: Option) -> Tensor:
        """Executes an option with the offset by which each channel's mean is the plain layer's.

        Args:
            x: A batch whose plain output was recorded.
            option: The option.
        """
        y = self.execute(x, option)
        shift = self._plain[len(self._seen)] - self._mean(y)
        self._seen.append(shift)
        return y + shift.view(
            [-1 if axis == self._channels % y.dim() else 1 for axis in range(y.dim())]
        )

    @torch.no_grad()
    def finish_estimate(self) -> None:
        """Adds the mean of what `estimate` found to the offset, if anything."""
        if self._seen:
            self.bias += torch.stack(self._seen).mean(0)
        self._seen = []

    def observe(self, x: Tensor, option: Option, weights: bool = True) -> None:
        """Initialises the option's ranges: of its input, and of its weights where asked for."""
        if option.is_quantised:
            held = self.weight_of(option) if weights else None
            self.quantiser.observe(x, held, self._slots[option])

    def execute(
        self, x: Tensor, option: Option, gain: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Executes one option.

        Args:
            x: Input (B, I, H, W) of a convolution, (..., I) of a linear layer.
            option: Quantised or full.
            gain: Factor per output channel (O,), folded into the weights: a BatchNorm's.
            bias: Offset per output channel (O,).

        Returns:
            (B, O, H', W') or (..., O).
        """
        weight = self.weight_of(option)
        if option.is_quantised:
            slot = self._slots[option]
            if not self.takes_levels(option):
                x = self.quantiser.activation(x, slot)
            weight = self.quantiser.weight(weight, slot)
        if gain is not None:
            weight = weight * per_channel(gain, weight)
        if self.bias is not None:
            own = self.bias if gain is None else self.bias * gain
            bias = own if bias is None else bias + own
        return self._apply_weights(x, weight, bias)


class FractionalConv2d(FractionalLayer, nn.Conv2d):
    """A convolution that executes the option it is asked for."""

    _channels = 1

    @classmethod
    def _like(cls, layer: nn.Conv2d) -> Self:
        new: Self = _geometry(cls, layer)
        return new

    def plain(self) -> nn.Conv2d:
        """See `FractionalLayer.plain`."""
        layer: nn.Conv2d = _holding(_geometry(nn.Conv2d, self), self)
        return layer

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class FractionalLinear(FractionalLayer, nn.Linear):
    """A linear layer that executes the option it is asked for."""

    _channels = -1

    @classmethod
    def _like(cls, layer: nn.Linear) -> Self:
        return cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")

    def plain(self) -> nn.Linear:
        """See `FractionalLayer.plain`."""
        has_bias = self.bias is not None
        empty = nn.Linear(self.in_features, self.out_features, has_bias, device="meta")
        layer: nn.Linear = _holding(empty, self)
        return layer

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


def _geometry(kind: Any, like: nn.Conv2d) -> Any:
    """A convolution of a kind and of another's geometry, on the meta device."""
    return kind(
        like.in_channels,
        like.out_channels,
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        like.groups,
        bias=like.bias is not None,
        padding_mode=like.padding_mode,
        device="meta",
    )


def _holding(layer: Any, given: FractionalLayer) -> Any:
    """A layer with another's parameters."""
    layer.weight, layer.bias = given.weight, given.bias
    return layer.train(given.training)


def _slots(options: OptionSet) -> dict[Option, int]:
    quantised = [option for option in options if option.is_quantised]
    return {option: slot for slot, option in enumerate(quantised)}
