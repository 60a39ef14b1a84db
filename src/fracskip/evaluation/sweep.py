"""One network at many budgets: its accuracy-cost curve, schema `fracskip.sweep/2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fracskip.data import ImageSet
from fracskip.errors import ConfigError
from fracskip.evaluation.cascade_record import evaluate_cascade
from fracskip.evaluation.predictions import Progress
from fracskip.evaluation.predictor import Network, cascade_session, predictor_of
from fracskip.evaluation.record import evaluate
from fracskip.evaluation.source import Batches, source_of

SCHEMA = "fracskip.sweep/2"
POINTS = 9  # budgets, unless they are given
LEAST_BUDGET = 0.005  # where a gate takes any budget
# Of an evaluation's record: what all points share, and what differs.
SHARED = ("checkpoint", "checkpoint_digest", "data", "images", "device", "versions")
POINT = (
    *("budget", "accuracy", "cp", "bitops_ratio", "escalation_rate", "option_share"),
    *("decision_entropy_bits", "seconds"),
)


def default_budgets(reach: tuple[float, float]) -> tuple[float, ...]:
    """Budgets from the smallest to the largest that a network takes, even in log cost."""
    low, high = max(reach[0], LEAST_BUDGET), reach[1]
    return tuple(float(value) for value in np.geomspace(low, high, POINTS))


def sweep(
    net: Network,
    data: ImageSet | Batches,
    budgets: Sequence[float] = (),
    *,
    name: str = "",
    normalised: bool = False,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a network at several budgets.

    Args:
        net: A network that takes a budget, on any device, a session, or a cascade.
        data: Images and labels, of the network's classes; see `evaluate`.
        budgets: Computation shares; by default nine over all that the network reaches.
        name: What to call the checkpoint in the record.
        normalised: Floats are normalised, whatever their range is.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        The record: for each budget, ascending, accuracy, realised cost and decisions; of a cascade
        one of schema `fracskip.cascade/1`.

    Raises:
        ConfigError: if the network takes no budget, or not one of these.
        DataError: if the data do not fit, or can be gone through once only.
    """
    session = cascade_session(net)
    if session is not None:
        reach = session.budgets
        assert reach is not None
        return evaluate_cascade(
            session,
            data,
            sorted(budgets or default_budgets(reach)),
            name=name,
            batch_size=batch_size,
            progress=progress,
        )
    info = predictor_of(net).info
    if info.budgets is None:
        raise ConfigError(
            "this network was trained for one budget, so there is nothing to sweep: use eval, or "
            "train with joint.budgets"
        )
    asked = sorted(budgets or default_budgets(info.budgets))
    source_of(data, info.class_names, len(asked))  # refuses what cannot be gone through so often
    found = [
        evaluate(
            net,
            data,
            name=name,
            budget=budget,
            static=False,
            examples=0,
            normalised=normalised,
            batch_size=batch_size,
            progress=progress,
        )
        for budget in asked
    ]
    points = []
    for one in found:
        blocks = [{key: block[key] for key in ("name", "option_share")} for block in one["blocks"]]
        points.append({**{key: one[key] for key in POINT}, "blocks": blocks})
    return {"schema": SCHEMA, **{key: found[0][key] for key in SHARED}, "points": points}
