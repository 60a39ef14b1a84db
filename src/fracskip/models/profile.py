"""What a network's layers cost, read off the shapes that run through it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fracskip.config import ImageConfig
from fracskip.cost.profile import conv_macs, linear_macs


def module_macs(net: nn.Module, image: ImageConfig) -> dict[str, int]:
    """MACs of every convolution and linear layer that one image runs through, by module path.

    The network itself is left alone: shapes are traced on a copy without data.
    """
    macs: dict[str, int] = {}

    def record(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                kernel = (module.kernel_size[0], module.kernel_size[1])
                size = (output.shape[2], output.shape[3])
                count = conv_macs(
                    module.in_channels, module.out_channels, kernel, size, module.groups
                )
            else:
                assert isinstance(module, nn.Linear)
                count = linear_macs(module.in_features, module.out_features)
            macs[name] = macs.get(name, 0) + count

        return hook

    twin = copy.deepcopy(net).to("meta").eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(record(name))  # type: ignore[arg-type]
    with torch.no_grad():
        twin(torch.empty(1, image.channels, *image.size, device="meta"))
    return macs
