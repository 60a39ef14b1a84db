"""A network's convolutions as an engine executes them: BatchNorm folded, weights as integers.

This is what an exporter reads. Factors are float64, so that each deployed multiplier is rounded
to float32 once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fracskip.options import Option
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import LsqQuantiser


@dataclass(frozen=True)
class FoldedLayer:
    """y = gain · (input ⋆ (weight · weight_step)) + offset, per output channel.

    Attributes:
        layer: The convolution: its geometry; or a linear layer, as one of 1 x 1.
        weight: (O, I, kh, kw): int8 up to 8 bits, int16 up to 16, float32 where not quantised.
        weight_step: float64 (O,); None where not quantised.
        gain: BatchNorm's factor, float64 (O,).
        offset: Its offset, the convolution's bias included, float64 (O,).
        input_step: Step of the unsigned grid that the input is rounded to; None where the input is
            taken as it is (an int8 stream's own levels, or no quantisation).
        input_zero: The level that stands for 0.
    """

    layer: nn.Conv2d | nn.Linear
    weight: Tensor
    weight_step: Tensor | None
    gain: Tensor
    offset: Tensor
    input_step: float | None
    input_zero: int = 0


def folded_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, option: Option) -> tuple[Tensor, Tensor]:
    """A BatchNorm's gain and offset at an option, float64 (C,) each."""
    if isinstance(norm, FractionalBatchNorm2d):
        return norm.folded64(option)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.double() - norm.running_mean.double() * gain


@torch.no_grad()
def fold(
    layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d | None, option: Option
) -> FoldedLayer:
    """Folds a BatchNorm into the layer before it.

    Args:
        layer: A plain layer, or one of 'lsq' quantisation.
        norm: Its BatchNorm; of the same kind; None if there is none.
        option: Which execution: quantised or full. Plain layers have full alone.

    Raises:
        ValueError: for the 'paper' scheme, whose ranges are affine.
    """
    if norm is None:
        gain = torch.ones(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        offset = torch.zeros_like(gain)
    else:
        gain, offset = folded_norm(norm, option)
    if layer.bias is not None:
        offset = offset + layer.bias.double() * gain
    held = layer.weight_of(option) if isinstance(layer, FractionalLayer) else layer.weight
    weight, weight_step, input_step, input_zero = held.detach().float(), None, None, 0
    if option.is_quantised and isinstance(layer, FractionalLayer):
        quantiser = layer.quantiser
        if not isinstance(quantiser, LsqQuantiser):
            raise ValueError("'paper' quantisation is affine and does not fold")
        slot = layer.slot(option)
        weight, step = quantiser.integers(held, slot)
        weight_step = step.double()
        if not layer.takes_levels(option):
            input_step, input_zero = quantiser.input_step(slot), quantiser.input_zero(slot)
    if isinstance(layer, nn.Linear):
        weight = weight[:, :, None, None]
    return FoldedLayer(layer, weight, weight_step, gain, offset, input_step, input_zero)
