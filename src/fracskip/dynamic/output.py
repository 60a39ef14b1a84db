"""What a dynamic network gives back.

Shapes: B images, L gated blocks, K options, N classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a network says of a batch; a tuple, as what wraps modules expects.

    Attributes:
        logits: (B, N).
        decisions: Option indices (B, L); where an image was looked at twice, of the second look.
        cost: Relative cost of each image over its gated blocks, (B,): 1 is all in full. In
            training it carries the gates' gradient. Both looks count.
        scores: In training: the gates' logits (B, L, K), leaned but without noise.
        first: Where images may be looked at twice: decisions of the first look (B, L).
        again: Likewise: which were, bool (B,).
    """

    logits: Tensor
    decisions: Tensor
    cost: Tensor
    scores: Tensor | None = None
    first: Tensor | None = None
    again: Tensor | None = None
