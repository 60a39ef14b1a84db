"""One network at many budgets: its accuracy-cost curve, schema `fracskip.sweep/1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fracskip.cost import account, decision_entropy_bits, option_shares
from fracskip.data import ImageSet
from fracskip.errors import ConfigError
from fracskip.evaluation.predictions import Progress, predict_subject
from fracskip.evaluation.record import checkpoint_of, named_shares
from fracskip.evaluation.subject import Network, subject_of
from fracskip.machine import versions

SCHEMA = "fracskip.sweep/1"
POINTS = 9  # budgets, unless they are given
LEAST_BUDGET = 0.005  # where a gate takes any budget


def default_budgets(reach: tuple[float, float]) -> tuple[float, ...]:
    """Budgets from the smallest to the largest that a network takes, even in log cost."""
    low, high = max(reach[0], LEAST_BUDGET), reach[1]
    return tuple(float(value) for value in np.geomspace(low, high, POINTS))


def sweep(
    net: Network,
    data: ImageSet,
    budgets: Sequence[float] = (),
    *,
    name: str = "",
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a network at several budgets.

    Args:
        net: A network that takes a budget, on any device, or a session.
        data: Images and labels, of the network's classes.
        budgets: Computation shares; by default nine over all that the network reaches.
        name: What to call the checkpoint in the record.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        The record: for each budget, ascending, accuracy, realised cost and decisions.

    Raises:
        ConfigError: if the network takes no budget, or not one of these.
    """
    subject = subject_of(net)
    card = subject.card
    if card.budgets is None:
        raise ConfigError(
            "this network was trained for one budget, so there is nothing to sweep: use eval, or "
            "train with joint.budgets"
        )
    points = []
    for budget in sorted(budgets or default_budgets(card.budgets)):
        found = predict_subject(subject, data.images, None, budget, batch_size, progress)
        shares = option_shares(found.decisions, card.options)
        cost = account(found.decisions, card.options, card.profile)
        points.append(
            {
                "budget": budget,
                "accuracy": float((found.predicted == data.labels).mean()),
                "cp": cost.cp,
                "bitops_ratio": cost.bitops_ratio,
                "option_share": named_shares(shares.mean(0), card.options),
                "decision_entropy_bits": float(decision_entropy_bits(shares).mean()),
                "seconds": found.seconds,
                "blocks": [
                    {"name": block.name, "option_share": named_shares(row, card.options)}
                    for block, row in zip(card.profile.gated, shares, strict=True)
                ],
            }
        )
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint_of(card, name),
        "checkpoint_digest": card.digest,
        "data": {"name": data.name, "split": data.split},
        "images": len(data),
        "points": points,
        "device": card.device,
        "versions": versions(),
    }
