"""The decision rule: a block executes the option of the least score plus multiplier times cost.

A gate gives a score for each option, the less the better: how much sensitivity the image's
prediction has to the option, or, of a gate that is trained as a classifier, the negative logit.
The Lagrange multiplier of cost weighs computation against it; a mask rules out what a block can't
do. Here are the offsets that follow from these. Whatever executes a network (torch, the portable
and the native engine, ONNX) adds them to the scores and takes the first minimum.

Shapes: B images, L gated blocks, K options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.options import OptionSet

MASKED = 1e9  # added to the score of what a block can't do; finite, so that nothing becomes NaN


def cost_weights(
    options: OptionSet, output: Literal["logit", "sensitivity"]
) -> tuple[float, ...]:
    """What the multiplier weighs of each option (K,), ascending; the last one's is 1.

    Args:
        options: What there is to choose from.
        output: Of the gate. Sensitivity is weighed against cost, in units of the dearest option's.
            Logits have no such scale: their options count by rank, evenly from 0, and the
            multiplier is a bias on logits that orders decisions.

    >>> cost_weights(OptionSet.of(["skip", 4, 8]), "sensitivity")
    (0.0, 0.25, 1.0)
    >>> cost_weights(OptionSet.of(["skip", 4, 8]), "logit")
    (0.0, 0.5, 1.0)
    """
    if output == "sensitivity":
        return tuple(cost / options.costs[-1] for cost in options.costs)
    return tuple(rank / max(options.top, 1) for rank in range(len(options)))


def masks(options: OptionSet, skippable: Sequence[bool]) -> NDArray[np.float32]:
    """`MASKED` for each option that a block does not have, otherwise 0: float32 (L, K).

    Args:
        options: What there is to choose from.
        skippable: Of each gated block: whether it can be skipped.
    """
    mask = np.zeros((len(skippable), len(options)), np.float32)
    if options.can_skip:
        mask[~np.asarray(skippable, dtype=bool), 0] = MASKED
    return mask


def offsets(multiplier: Any, weights: Any, mask: Any) -> Any:
    """What is added to scores before the first minimum is taken: (L, K), or (B, L, K).

    Args:
        multiplier: A number for all images, or an array (B,); NumPy's or torch's, float32.
        weights: Of cost: (K,), or (L, K) where an option's cost differs between blocks.
        mask: See `masks`.
    """
    if getattr(multiplier, "ndim", 0):
        multiplier = multiplier[:, None, None]
    return multiplier * weights + mask
