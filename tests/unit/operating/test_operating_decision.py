"""The decision rule: offsets of cost, masks."""

from __future__ import annotations

import numpy as np
import torch

from fracskip.operating import cost_weights, masks, offsets
from fracskip.options import OptionSet

LOW = OptionSet.of(["skip", 4, 8])


def test_what_a_multiplier_weighs() -> None:
    """Cost relative to the dearest option's, or the rank; the same in every block."""
    assert cost_weights(LOW, "sensitivity", 2).tolist() == [[0.0, 0.25, 1.0]] * 2
    assert cost_weights(LOW, "logit", 2).tolist() == [[0.0, 0.5, 1.0]] * 2
    assert cost_weights(OptionSet.of([8]), "logit", 1).tolist() == [[0.0]]
    assert cost_weights(LOW, "logit", 1).dtype == np.float32


def test_masks_are_of_blocks_that_cannot_be_skipped() -> None:
    assert masks(LOW, [True, False]).tolist() == [[False] * 3, [True, False, False]]
    assert not masks(OptionSet.of([4, 8]), [True, False]).any()


def test_offsets_are_the_same_of_either_kind_of_array() -> None:
    weights = cost_weights(LOW, "sensitivity", 1)[0]
    assert offsets(2.0, weights).tolist() == [0.0, 0.5, 2.0]
    each = offsets(np.float32([2.0, -1.0]), weights)
    assert each.tolist() == [[0.0, 0.5, 2.0], [-0.0, -0.25, -1.0]]
    other = offsets(torch.tensor([2.0, -1.0]), torch.from_numpy(weights))
    assert other.tolist() == each.tolist()


def test_the_least_score_plus_multiplier_times_cost_is_chosen() -> None:
    sensitivities = np.float32([6.0, 1.0, 0.0])
    weights = cost_weights(LOW, "sensitivity", 1)[0]
    chosen = [int((sensitivities + offsets(m, weights)).argmin()) for m in (0.0, 2.0, 30.0)]
    assert chosen == [2, 1, 0]
