"""A trained backbone made deeper without changing what it computes.

Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016,
grow a network by layers that start as the identity. Here each trained block is followed by a new
one of the same shape whose last BatchNorm has gain and offset zero. Its branch gives zero then, and
relu(x + 0) is x, because x is a ReLU's output. The gain has a gradient from the first step on;
the new convolutions, which start at random, follow once it has left zero.
"""

from __future__ import annotations

import torch
from torch import nn

from fracskip.errors import ConfigError
from fracskip.models.resnet import BasicBlock, CifarResNet


@torch.no_grad()
def deepen(net: CifarResNet, target: CifarResNet) -> CifarResNet:
    """Fills a deeper network so that it computes what a trained one does (in evaluation mode).

    Trained blocks keep their order; block i of a stage becomes block i · n' // n, n and n' blocks a
    stage. The blocks in between are new.

    Args:
        net: The trained network.
        target: A fresh network of at least as many blocks a stage; changed in place. What is new
            keeps its random start, except for the last BatchNorm of each new block.

    Returns:
        The target.

    Raises:
        ConfigError: if the target is shallower or has other shapes.
    """
    for (name, stage), (_, wider) in zip(_parts(net), _parts(target), strict=True):
        if not isinstance(stage, nn.Sequential) or not isinstance(wider, nn.Sequential):
            _copy(stage, wider, name)
            continue
        count, wanted = len(stage), len(wider)
        if wanted < count:
            raise ConfigError(f"{name}: {wanted} blocks cannot hold {count} trained ones")
        places = {index * wanted // count: index for index in range(count)}
        for place, block in enumerate(wider):
            if place in places:
                _copy(stage[places[place]], block, f"{name}.{place}")
            else:
                assert isinstance(block, BasicBlock)
                last = block.get_submodule(block.branch[-1][1])
                assert isinstance(last, nn.BatchNorm2d)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    return target


def _parts(net: CifarResNet) -> list[tuple[str, nn.Module]]:
    return list(net.named_children())


def _copy(source: nn.Module, target: nn.Module, name: str) -> None:
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        raise ConfigError(f"{name} has another shape in the deeper network") from None
