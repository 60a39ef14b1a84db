"""One block, every option: for all images alike, or for each by its own decision.

What is not chosen is not computed.

Shapes: B images, K options, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Flag, auto

import torch
from torch import Tensor

from fracskip.dynamic.gradient import pass_gate_gradient
from fracskip.dynamic.passes import reorder
from fracskip.errors import DataError
from fracskip.options import Option, OptionSet


class Gather(Flag):
    """What a pass over calibration images gathers, in a layer before it is executed."""

    NOTHING = 0
    RANGES = auto()  # of its input
    STEPS = auto()  # of its weights
    ROUNDING = auto()  # its weights themselves
    STATISTICS = auto()  # of its BatchNorm; its offset where it has none


@dataclass(frozen=True)
class OptionSample:
    """An option tried on a few images beside their own, for the gates' gradient.

    Attributes:
        rows: Which images, (T,).
        option: Index of what they try.
        weight: One over the probability that an image tries a given option.
    """

    rows: Tensor
    option: int
    weight: float


class RoutedBlock:
    """Executes one block at any option of a set; subclasses say how.

    Attributes:
        name: The block's module path.
        options: What may be chosen.
        in_channels: Of what it sees.
        can_be_skipped: Whether it has a shortcut; if not, skipping is no choice.
        identity_shortcut: Whether that is the identity.
    """

    name: str
    options: OptionSet
    in_channels: int
    can_be_skipped: bool = True
    identity_shortcut: bool = False

    def _execute(self, x: Tensor, option: Option) -> Tensor:
        """One option for all images, up to where the block ends."""
        raise NotImplementedError

    def _skip(self, x: Tensor) -> Tensor:
        """The block's shortcut."""
        raise NotImplementedError

    def _onward(self, x: Tensor) -> Tensor:
        """What lies between the block and the next, executed whatever is chosen."""
        return x

    def execute(self, x: Tensor, option: Option) -> Tensor:
        """Executes one option for all images: (B, C, H, W) -> (B, C', H', W')."""
        return self._onward(self._execute(x, option))

    def route(self, x: Tensor, choice: Tensor) -> Tensor:
        """Executes each image's own option: images are grouped, each group runs once.

        Args:
            x: (B, C, H, W).
            choice: Option indices (B,).

        Returns:
            (B, C', H', W'), in the order of the images.
        """
        return self._onward(self._route(x, choice))

    def _route(self, x: Tensor, choice: Tensor) -> Tensor:
        counts = torch.bincount(choice, minlength=len(self.options)).tolist()
        if len(counts) > len(self.options):  # what `choose` says of NaN
            raise DataError(
                "a gate's logits are NaN: images or weights hold NaN or infinite values"
            )
        present = [index for index, count in enumerate(counts) if count]
        if len(present) == 1:
            return self._execute(x, self.options[present[0]])
        order = torch.argsort(choice, stable=True)
        inverse = torch.argsort(order)
        sizes = [counts[index] for index in present]
        groups = torch.split(reorder(x, order, inverse), sizes)
        outputs = [
            self._execute(group, self.options[index])
            for group, index in zip(groups, present, strict=True)
        ]
        return reorder(torch.cat(outputs), inverse, order)

    def mix(self, x: Tensor, weights: Tensor) -> Tensor:
        """Executes every option for every image and mixes them: the paper's training.

        Costs K times as much as `route`; `route_with_gradient` estimates the same gradient.

        Args:
            x: (B, C, H, W).
            weights: Straight-through one-hots (B, K).
        """
        parts = [
            self._execute(x, option) * weights[:, index, None, None, None]
            for index, option in enumerate(self.options)
            if self.can_be_skipped or not option.is_skip
        ]
        return self._onward(torch.stack(parts).sum(0))

    def route_with_gradient(
        self, x: Tensor, weights: Tensor, choice: Tensor, sample: OptionSample
    ) -> Tensor:
        """Routes, and gives the gates an unbiased estimate of the gradient of `mix`.

        Args:
            x: (B, C, H, W).
            weights: Straight-through one-hots (B, K).
            choice: The options they choose (B,).
            sample: What to try on a few images; those that chose it cost nothing.
        """
        y = self._route(x, choice)
        with torch.no_grad():
            rows = sample.rows[choice[sample.rows] != sample.option]
            skips = self.options.can_skip and self.can_be_skipped
            skipped = self._skip(x) if skips else None
            tried = self._execute(x[rows], self.options[sample.option]) if len(rows) else y[:0]
        y = pass_gate_gradient(y, weights, skipped, tried, rows, sample.option, sample.weight)
        return self._onward(y)

    def calibrate(self, x: Tensor, option: Option, gather: Gather) -> Tensor:
        """Executes an option for one batch and gathers what calibration needs.

        Where there is one option, what is executed whatever is chosen takes part.

        Args:
            x: What the block sees, (B, C, H, W).
            option: The option, quantised.
            gather: What to gather. Ranges, steps and weights are used at once; statistics and
                offsets (where the option has its own) are this batch's, until
                `finish_calibration` stores those of all.

        Returns:
            What the next block sees.
        """
        raise NotImplementedError

    def finish_calibration(self, option: Option) -> None:
        """Stores the statistics gathered by `calibrate`, if any."""
        raise NotImplementedError

    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """Estimates an option's BatchNorm statistics anew, each norm after the ones before it.

        Args:
            groups: What the images that execute it bring, (B, C, H, W) each; some may be empty.
            option: The option.
        """
        raise NotImplementedError

    def reestimate_shortcut(self, batches: Sequence[Tensor]) -> None:
        """Estimates the statistics of a projection's norm anew, on all images (B, C, H, W)."""
        raise NotImplementedError
