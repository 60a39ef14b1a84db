"""A backbone's cost, read off the shapes that run through it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fracskip.config import ImageConfig
from fracskip.cost.profile import BlockProfile, NetworkProfile, conv_macs, linear_macs
from fracskip.models.resnet import CifarResNet


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


def profile_backbone(net: CifarResNet, image: ImageConfig) -> NetworkProfile:
    """Profiles a plain backbone: the first block is never gated, all others are.

    Args:
        net: The backbone, before it is made dynamic.
        image: Size and channels of its input.
    """
    macs = module_macs(net, image)

    def under(prefix: str) -> int:
        return sum(count for name, count in macs.items() if name.startswith(prefix))

    blocks = []
    for index, (name, _) in enumerate(net.named_blocks()):
        shortcut = under(f"{name}.downsample.")
        blocks.append(BlockProfile(name, under(f"{name}.") - shortcut, shortcut, gated=index > 0))
    return NetworkProfile(macs["conv1"], tuple(blocks), macs["fc"])
