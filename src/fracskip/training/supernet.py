"""The second stage: weights that serve every option, before gates learn what an option does.

A gate that learns sensitivity to options that were only calibrated learns that 2 bits ruin
everything. So first all options learn together in allocations drawn at random, sharing weights
(one-shot supernets: Guo et al., ECCV 2020; options as widths in slimmable networks: Yu et al., ICLR
2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fracskip.config import Recipe, SupernetStage
from fracskip.dynamic import DynamicNetwork
from fracskip.training.randomness import generator_at
from fracskip.training.stages import AllocationTraining, StepIndex, StepResult

SPREAD = 0.7  # deviation of a block's option around the allocation's level, in ranks


def draw_allocation(
    net: DynamicNetwork, share: float, config: SupernetStage, draw: torch.Generator
) -> list[int]:
    """An option for each gated block: all near one level, some skipped; or one option for all.

    Projections are not skipped: gates seldom do, and without one little is left to learn from.

    Args:
        net: The network.
        share: In [0, 1]: how dear the allocation is, from 0 (blocks about the cheapest executed
            option) to 1 (about the dearest).
        config: How allocations are drawn.
        draw: A CPU generator.

    Returns:
        Option indices (L).
    """
    lowest, count = int(net.options.can_skip), len(net.blocks)
    widths = len(net.options) - lowest
    level = share**config.low_focus * widths
    if float(torch.rand((), generator=draw)) < config.uniform_rate:
        return [lowest + min(int(level), widths - 1)] * count
    drawn = lowest - 0.5 + level + SPREAD * torch.randn(count, generator=draw)
    allocation = drawn.round().long().clamp(lowest, len(net.options) - 1)
    skip_rate = config.skip_rate * torch.rand((), generator=draw)
    skipped = torch.rand(count, generator=draw) < skip_rate
    if net.options.can_skip:
        allowed = torch.tensor([block.identity_shortcut for block in net.blocks])
        allocation[skipped & allowed] = 0
    taken: list[int] = allocation.tolist()
    return taken


class SupernetTraining(AllocationTraining):
    """Stage 2: all options' weights, all images of a step in one allocation drawn at random.

    Args:
        net: The network; its gates have no part in this.
        recipe: The run.
        device: Where it trains.
        bf16: Whether in bfloat16.
        teacher: The network to distil from, if the recipe says so.
    """

    name = "supernet"

    def __init__(
        self,
        net: DynamicNetwork,
        recipe: Recipe,
        device: torch.device,
        bf16: bool,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(net, recipe, recipe.supernet, device, bf16, teacher)
        self._config = recipe.supernet

    def step(self, images: Tensor, labels: Tensor, at: StepIndex) -> StepResult:
        """See `Stage`."""
        draw = generator_at(self.recipe.seed, "supernet", at.epoch, at.step)
        share = float(torch.rand((), generator=draw))
        allocation = draw_allocation(self.net, share, self._config, draw)
        return self.train_allocation(images, labels, allocation, at)
