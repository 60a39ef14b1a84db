"""How training strays from what the gates say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """How training explores options.

    Attributes:
        generator: All random choices come from it (a CPU generator).
        noise: Scale of the Gumbel noise on the gates' logits.
        temperature: Of the softmax that carries the gates' gradient.
        dense: Compute every option for every image (K times the cost).
        sample_rate: Otherwise: share of images that try an option not chosen; with 0 the loss
            tells the gates nothing.
        anchors: The first so many images execute `anchor_option` everywhere; they tell the gates
            nothing, and their cost means nothing.
        anchor_option: Index of that option.
        lean: In place of the spec's: added to the logits times `lean_weights`.
    """

    generator: torch.Generator
    noise: float = 0.0
    temperature: float = 1.0
    dense: bool = False
    sample_rate: float = 0.25
    anchors: int = 0
    anchor_option: int = 0
    lean: float | Tensor = 0.0
