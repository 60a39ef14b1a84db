"""Weights rounded so that a layer's output changes least, not each weight by itself.

Rounding a weight up shifts what the layer gives; the weights not yet rounded can take most of that
back, where the inputs that they weigh are correlated. This is the closed form of

- Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
  Transformers", ICLR 2023, after
- Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", 1993.

With C the covariance of a layer's inputs, the error of an output channel with weights w + d is
d' C d beside its mean, which the channel's offset takes. Weights are rounded one after the other,
those of the most varied inputs first. With U the upper Cholesky factor of C's inverse, rounding
weight i to q_i changes the later ones j by

    w_j <- w_j - (w_i - q_i) / U_ii * U_ij

Shapes: G groups of channels, O output channels and K inputs of each in a group, R rows of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.quant.fake import round_to_grid

ROWS = (512, 8192)  # of inputs that a covariance is taken of: at least and at most
ROWS_A_COLUMN = 16
WIDEST = 2304  # inputs of an output channel: more would take minutes, and err little together
DAMPING = 0.01  # share of the mean variance that is added to each
_COLUMNS = 64  # rounded before all others are changed


def input_rows(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """What a layer's weights are multiplied with, (G, R, K), at evenly spread places.

    Args:
        layer: The layer.
        x: Its input, (B, I, H, W) of a convolution, (..., I) of a linear layer.
    """
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, layer.in_features)
        return rows[_spread(len(rows), layer.in_features, x.device)][None]
    # Columns and rows of zeros, in torch's order, whatever the padding was given as.
    x = F.pad(x, list(layer._reversed_padding_repeated_twice))
    for axis in (2, 3):
        kernel, dilation = layer.kernel_size[axis - 2], layer.dilation[axis - 2]
        windows = x.unfold(axis, (kernel - 1) * dilation + 1, layer.stride[axis - 2])
        x = windows[..., ::dilation]
    count, _, high, wide = x.shape[:4]
    places = _spread(count * high * wide, layer.weight[0].numel(), x.device)
    image, place = places // (high * wide), places % (high * wide)
    rows = x[image, :, place // wide, place % wide]  # (R, I, kh, kw)
    return rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)


def _spread(count: int, columns: int, device: torch.device) -> Tensor:
    """Some of so many places for so many columns, drawn alike every time."""
    fewest, most = ROWS
    wanted = min(max(fewest, ROWS_A_COLUMN * columns), most)
    if count <= wanted:
        return torch.arange(count, device=device)
    draw = torch.Generator().manual_seed(count)
    return torch.randint(count, (wanted,), generator=draw).to(device)


def compensated(weight: Tensor, rows: Tensor, step: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Weights on their grid that change a layer's output least.

    Args:
        weight: (G, O, K).
        rows: The layer's inputs, (G, R, K).
        step: Of each output channel, (G, O).
        bounds: Smallest and largest integer.

    Returns:
        Multiples of the steps, (G, O, K).
    """
    rows = rows - rows.mean(1, keepdim=True)
    covariance = (rows.transpose(1, 2) @ rows / rows.shape[1]).double()
    variance = covariance.diagonal(dim1=1, dim2=2)  # (G, K)
    mean = variance.mean(1, keepdim=True).clamp_min(2.0**-60)
    covariance = covariance + torch.diag_embed((DAMPING * mean).expand_as(variance))
    order = variance.argsort(1, descending=True)
    back = order.argsort(1)
    across = order[:, None].expand_as(weight)
    by_row = order[:, :, None].expand_as(covariance)
    ordered = covariance.gather(1, by_row).gather(2, order[:, None].expand_as(covariance))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double().gather(2, across)
    found = torch.empty_like(left)
    size = left.shape[2]
    for start in range(0, size, _COLUMNS):
        end = min(start + _COLUMNS, size)
        errors = torch.empty_like(left[:, :, start:end])
        for column in range(start, end):
            value = left[:, :, column]
            rounded = round_to_grid(value, step.double(), bounds)
            error = (value - rounded) / factor[:, column, column, None]
            found[:, :, column], errors[:, :, column - start] = rounded, error
            later = factor[:, column, None, column + 1 : end]
            left[:, :, column + 1 : end] -= error[:, :, None] * later
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return found.gather(2, back[:, None].expand_as(weight)).to(weight.dtype)
