"""Static mixed precision by search, a dynamic network's control: one width a block for all images.

On the network's own weights, so nothing is trained: the sensitivity to each option in each block,
in cross-entropy on validation images, is measured around the allocation found so far, and at a
budget the next allocation is the one of least sum of sensitivity + multiplier x cost. After a few
such rounds the best that was measured within the budget is kept (HAQ's kind of search, with a
measured table in place of a learned agent). Test images are only classified with what was found.

Run from the repository's root:

    python tools/search_allocation.py dfs-resnet38-cifar10 --json results/allocation.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from checking import publish, session_of
from numpy.typing import NDArray

from fracskip.checkpoint import load
from fracskip.data import ImageSet, load_split, split_validation
from fracskip.evaluation.sweep import default_budgets
from fracskip.machine import cores, describe_processor
from fracskip.runtime import InferenceSession

THREADS = cores()
ROUNDS = 4
HALVINGS = 60  # of the interval of multipliers
MOST_MULTIPLIER = 1e3  # nats a block's whole cost

Allocation = NDArray[np.uint8]
Numbers = NDArray[np.float64]


def loss(session: InferenceSession, data: ImageSet, allocation: Allocation) -> float:
    """Mean cross-entropy in one allocation for all images."""
    logits = session.run(data.images, decisions=np.tile(allocation, (len(data), 1))).logits
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    of_label = shifted[np.arange(len(data)), data.labels]
    return float((np.log(np.exp(shifted).sum(1)) - of_label).mean())


def sensitivities_around(
    session: InferenceSession, data: ImageSet, allocation: Allocation, known: dict[bytes, float]
) -> Numbers:
    """Loss with each option in each block of an allocation, (L, K)."""
    found = np.empty((len(allocation), len(session.options)))
    for block, option in np.ndindex(found.shape):
        other = allocation.copy()
        other[block] = option
        key = other.tobytes()
        if key not in known:
            known[key] = loss(session, data, other)
        found[block, option] = known[key]
    return found


def allocate(sensitivities: Numbers, costs: Numbers, budget: float) -> Allocation:
    """The least sum of sensitivity + multiplier x cost, at the least multiplier within budget."""
    low, high = 0.0, MOST_MULTIPLIER
    for _ in range(HALVINGS):
        multiplier = (low + high) / 2
        allocation = (sensitivities + multiplier * costs).argmin(1)
        low, high = (low, multiplier) if costs[allocation].mean() <= budget else (multiplier, high)
    return (sensitivities + high * costs).argmin(1).astype(np.uint8)


def search(
    session: InferenceSession, data: ImageSet, budget: float, known: dict[bytes, float]
) -> Allocation:
    """The best allocation found within a budget.

    Args:
        session: The network.
        data: Images to measure on.
        budget: Computation share.
        known: Losses of allocations that were measured before on these images; more are added.

    Raises:
        ValueError: if the budget is under the cheapest allocation's.
    """
    costs = np.array(session.options.costs)
    allocation = np.full(len(session.plan.gated), len(costs) - 1, dtype=np.uint8)
    for _ in range(ROUNDS):
        allocation = allocate(sensitivities_around(session, data, allocation, known), costs, budget)
        known[allocation.tobytes()] = loss(session, data, allocation)
    within = {
        key: value
        for key, value in known.items()
        if costs[np.frombuffer(key, np.uint8)].mean() <= budget
    }
    if not within:
        raise ValueError(f"no allocation costs {budget} or less")
    return np.frombuffer(min(within, key=lambda key: within[key]), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--validation", type=int, default=5000, help="as in its recipe")
    parser.add_argument("--split-seed", type=int, default=0, help="likewise")
    parser.add_argument("--images", type=int, default=1000, help="of the validation images")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    net = load(given.checkpoint)
    session = session_of(net, THREADS)
    reach = session.plan.budgets
    if reach is None:
        parser.error(f"{given.checkpoint} takes no budget: there is nothing to search for")
    train = load_split(given.data, "train", net.spec.image)
    _, validation = split_validation(train, given.validation, given.split_seed)
    few = validation.subset(range(min(given.images, len(validation))))
    test = load_split(given.data, "test", net.spec.image)
    known: dict[bytes, float] = {}
    points: list[dict[str, Any]] = []
    for budget in default_budgets(reach):
        allocation = search(session, few, budget, known)
        decisions = np.tile(allocation, (len(test), 1))
        logits = session.run(test.images, decisions=decisions).logits
        points.append(
            {
                "budget": budget,
                "cp": session.cost(decisions).cp,
                "accuracy": float((logits.argmax(1) == test.labels).mean()),
                "allocation": [session.options.labels[option] for option in allocation],
            }
        )
    record = {
        "schema": "fracskip.allocation/2",
        "checkpoint": {"name": Path(given.checkpoint).name, "digest": net.digest},
        "data": {"name": test.name, "split": test.split},
        "images": len(test),
        "searched_on": len(few),
        "points": points,
    }
    publish(record, describe_processor(THREADS), given.json)


if __name__ == "__main__":
    main()
