"""A network's convolutions as an engine executes them: BatchNorm folded, weights as integers.

This is what an exporter reads. Factors are float64, so that each deployed multiplier is rounded
to float32 once. Blocks are counted from 0, the first (ungated) one included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fracskip.dynamic.block import ResidualBlock, stages_of
from fracskip.dynamic.network import DynamicNetwork
from fracskip.options import Option
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import STREAM_BITS, ModernQuantiser


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
        layer: A plain layer, or one of 'modern' quantisation.
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
        if not isinstance(quantiser, ModernQuantiser):
            raise ValueError("'paper' quantisation is affine and does not fold")
        slot = layer.slot(option)
        weight, step = quantiser.integers(held, slot)
        weight_step = step.double()
        if not layer.takes_levels(option):
            input_step, input_zero = quantiser.input_step(slot), quantiser.input_zero(slot)
    if isinstance(layer, nn.Linear):
        weight = weight[:, :, None, None]
    return FoldedLayer(layer, weight, weight_step, gain, offset, input_step, input_zero)


def _module(net: DynamicNetwork, block: int) -> nn.Module:
    return net.cifar_trunk().backbone.named_blocks()[block][1]


def folded_stem(net: DynamicNetwork) -> FoldedLayer:
    """The stem's convolution, always in float."""
    return fold(net.cifar_trunk().backbone.conv1, net.cifar_trunk().backbone.bn1, Option(32))


def folded_branch(net: DynamicNetwork, block: int, option: Option) -> tuple[FoldedLayer, ...]:
    """A block's branch at an executed option, convolution by convolution.

    Args:
        net: The network.
        block: From 0; block 0 is not gated and has one option: 8 bits on an int8 stream, else full.
        option: Quantised or full.
    """
    module = _module(net, block)
    names = cast(ResidualBlock, module).branch
    return tuple(
        fold(module.get_submodule(conv), module.get_submodule(norm), option)  # type: ignore[arg-type]
        for conv, norm in names
    )


def folded_shortcut(net: DynamicNetwork, block: int) -> FoldedLayer | None:
    """A block's projection - 8 bits on an int8 stream, else float; None for an identity."""
    module = _module(net, block)
    names = cast(ResidualBlock, module).projection
    if names is None:
        return None
    option = Option(32 if net.stream is None else STREAM_BITS)
    conv, norm = (module.get_submodule(name) for name in names)
    return fold(conv, norm, option)  # type: ignore[arg-type]


def output_stages(net: DynamicNetwork) -> tuple[int, ...]:
    """The stage of each block's output; the stem's is 0."""
    return stages_of([block for _, block in net.cifar_trunk().backbone.named_blocks()])


@torch.no_grad()
def stream_steps(net: DynamicNetwork) -> Tensor | None:
    """The int8 stream's step of each stage, float32 (stages,); None for a float stream."""
    if net.stream is None:
        return None
    return torch.cat([net.stream.step(stage) for stage in range(len(net.stream.steps))])
