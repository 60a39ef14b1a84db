"""The decision rule: a block executes the option of the least score plus multiplier times cost.

A gate gives a score for each option, the less the better: how much sensitivity the image's
prediction has to the option, or, of a gate that is trained as a classifier, the negative logit.
The Lagrange multiplier of cost weighs computation against it; a mask rules out what a block can't
do. Here are the offsets and masks that follow. Whatever executes a network (torch, the portable and
the native engine, ONNX) adds the ones, rules out the others and takes the first minimum.

Shapes: B images, L gated blocks, K options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.options import OptionSet


def cost_weights(
    options: OptionSet, output: Literal["logit", "sensitivity"], blocks: int
) -> NDArray[np.float32]:
    """What the multiplier weighs of each block's options, float32 (L, K).

    Args:
        options: What there is to choose from.
        output: Of the gate. Sensitivity is weighed against cost, in units of the dearest option's.
            Logits have no such scale: their options count by rank, evenly from 0 to 1, and the
            multiplier is a bias on logits that orders decisions.
        blocks: L. Today an option weighs the same in all of them.

    >>> cost_weights(OptionSet.of(["skip", 4, 8]), "sensitivity", 1).tolist()
    [[0.0, 0.25, 1.0]]
    >>> cost_weights(OptionSet.of(["skip", 4, 8]), "logit", 1).tolist()
    [[0.0, 0.5, 1.0]]
    """
    weights = [rank / max(options.top, 1) for rank in range(len(options))]
    if output == "sensitivity":
        weights = [cost / options.costs[-1] for cost in options.costs]
    return np.tile(np.array(weights, np.float32), (blocks, 1))


def masks(options: OptionSet, skippable: Sequence[bool]) -> NDArray[np.bool_]:
    """Which options a block can't execute, bool (L, K).

    Args:
        options: What there is to choose from.
        skippable: Of each gated block: whether it can be skipped.
    """
    mask = np.zeros((len(skippable), len(options)), bool)
    if options.can_skip:
        mask[:, 0] = ~np.asarray(skippable, dtype=bool)
    return mask


def offsets(multiplier: Any, weights: Any) -> Any:
    """What is added to a block's scores before the first minimum is taken: (K,), or (B, K).

    Args:
        multiplier: A number for all images, or an array (B,), float32: NumPy's or torch's.
        weights: What it weighs of the block's options, (K,), of the same kind.
    """
    each = multiplier[:, None] if getattr(multiplier, "ndim", 0) else multiplier
    return each * weights
