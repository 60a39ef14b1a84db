"""How training explores options beside those that the gates choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fracskip.dynamic.routing import OptionSample, RoutedBlock
from fracskip.gating import first_minimum, gumbel_like, straight_through
from fracskip.options import OptionSet


@dataclass(frozen=True)
class Exploration:
    """How training explores options.

    Attributes:
        generator: All random choices come from it (a CPU generator).
        noise: Scale of the Gumbel noise on the gates' scores.
        temperature: Of the softmax that carries the gates' gradient.
        dense: Compute every option for every image (K times the cost).
        sample_rate: Otherwise: share of images that try an option not chosen; with 0 the loss
            tells the gates nothing.
        uniform: The first so many images execute `uniform_option` everywhere; they tell the gates
            nothing, and their cost means nothing.
        uniform_option: Index of that option.
        multiplier: Of cost, in place of the operating points'.
    """

    generator: torch.Generator
    noise: float = 0.0
    temperature: float = 1.0
    dense: bool = False
    sample_rate: float = 0.25
    uniform: int = 0
    uniform_option: int = 0
    multiplier: float | Tensor = 0.0

    def execute(
        self, block: RoutedBlock, x: Tensor, scores: Tensor, options: OptionSet
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Executes a block as training explores it.

        Args:
            block: Which.
            x: What it sees, (B, C, H, W).
            scores: Of its options, offsets included, (B, K).
            options: What there is to choose from.

        Returns:
            What it gives, the choice (B,) and its relative cost (B,) with the gates' gradient.
        """
        if self.noise:
            scores = scores - self.noise * gumbel_like(scores, self.generator)
        choice = first_minimum(scores)
        choice[: self.uniform] = self.uniform_option
        weights = straight_through((-scores / self.temperature).softmax(-1), choice)
        if self.uniform:
            fixed = weights[: self.uniform].detach()
            weights = torch.cat([fixed, weights[self.uniform :]])
        if self.dense:
            x = block.mix(x, weights)
        elif not self.sample_rate:
            x = block.route(x, choice)
        else:
            sample = self.sample(len(x), options, x.device)
            x = block.route_with_gradient(x, weights, choice, sample)
        costs = torch.tensor(options.costs, device=x.device)
        # A product and a sum, not `@`: autocast would round the costs to bfloat16.
        return x, choice, (weights * costs).sum(1)

    def sample(self, count: int, options: OptionSet, device: torch.device) -> OptionSample:
        """Draws which images of so many try which executed option."""
        lowest = 1 if options.can_skip else 0
        executed = len(options) - lowest
        tries = max(1, round(self.sample_rate * count))
        rows = torch.randperm(count, generator=self.generator)[:tries]
        option = int(torch.randint(lowest, len(options), (), generator=self.generator))
        return OptionSample(rows.to(device), option, executed * count / tries)
