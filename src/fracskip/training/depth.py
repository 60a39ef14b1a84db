"""Backbones that learn to do without blocks: which ones a training step leaves out.

Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, skip later blocks more often than
earlier ones. That prepares a network for losing any of its blocks. A dynamic network loses mostly
the same ones, those to which it is least sensitive, and elastic depth prepares it for that: every
step draws how many blocks it leaves out and takes, with a little noise, the ones of least
sensitivity. The networks of all depths then lie in one (Cai et al., "Once-for-All", ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fracskip.config import Recipe
from fracskip.errors import ConfigError
from fracskip.models.layers import copy_of
from fracskip.models.skippable import SkippableNetwork

JITTER = 0.05  # deviation of a block's place in the order of sensitivity, as a share of all blocks


def skippable_network(net: nn.Module, recipe: Recipe) -> SkippableNetwork:
    """A run's backbone with the blocks that its dynamic network will have.

    Raises:
        ConfigError: if it has none that can be left out.
    """
    image = recipe.data.image
    try:
        return SkippableNetwork(net, (image.channels, *image.size), recipe.model.blocks or None)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or leave backbone.stochastic_depth out for {recipe.model.name}"
        ) from None


def draw_by_depth(net: SkippableNetwork, rate: float, draw: torch.Generator) -> frozenset[int]:
    """Each block on its own, with a probability that rises from 0 at the first to `rate`."""
    drawn = torch.rand(net.count, generator=draw).tolist()
    return frozenset(i for i in net.skippable if drawn[i] < rate * i / (net.count - 1))


def draw_by_sensitivity(order: Sequence[int], rate: float, draw: torch.Generator) -> frozenset[int]:
    """The blocks that come first in the order, up to a share drawn between 0 and `rate`.

    Args:
        order: Blocks, those of least sensitivity first.
        rate: Largest share of them to leave out.
        draw: A CPU generator.
    """
    share = rate * torch.rand((), generator=draw)
    places = (torch.arange(len(order)) + 0.5) / max(1, len(order))
    places = places + JITTER * torch.randn(len(order), generator=draw)
    return frozenset(block for block, out in zip(order, places < share, strict=True) if out)


@torch.no_grad()
def elimination_order(
    net: nn.Module,
    recipe: Recipe,
    batches: Sequence[tuple[Tensor, Tensor]],
    bf16: bool = False,
) -> list[int]:
    """The skippable blocks, those of least sensitivity first.

    Greedy: of the blocks that are left, the next to go is the one without which the cross-entropy
    is lowest. BatchNorm normalises by the batch, because statistics of the whole network say
    nothing of a part.

    Args:
        net: A trained backbone; it is left as it is.
        recipe: The run.
        batches: Images (B, C, H, W) and labels (B,), some hundreds in all.
        bf16: Compute in bfloat16.
    """
    twin = copy_of(net)
    blocks = skippable_network(twin, recipe)
    for module in twin.train().modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = None

    def loss(skipped: set[int]) -> float:
        total = 0.0
        for images, labels in batches:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = blocks(images, skipped)
            total += float(F.cross_entropy(logits.float(), labels))
        return total

    order: list[int] = []
    remaining = list(blocks.skippable)
    while remaining:
        losses = [loss({*order, block}) for block in remaining]
        order.append(remaining.pop(losses.index(min(losses))))
    return order
