"""Whether a network's decisions are worth more than their costs say: controls beside them.

At each budget, beside the decisions of the gates: the same decisions permuted over images; random
ones, in each block of the gates' shares; and the static allocation of each block's most frequent
option (that costs something else: its own cost is given); and, where images may be escalated, the
same network with a single member, and with as many images escalated that are drawn at random.
Permuted, random and static decisions are those of the members that answered: they cost less than
all members do. Nothing is trained again.

Run from the repository's root:

    python tools/controls.py cpu-resnet74-cifar10 --json results/controls.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from checking import publish, session_of
from numpy.typing import NDArray

from fracskip.checkpoint import load
from fracskip.cost import decision_entropy_bits, option_shares
from fracskip.data import load_split
from fracskip.evaluation.sweep import default_budgets
from fracskip.machine import cores, describe_processor
from fracskip.operating import Execution
from fracskip.runtime import InferenceSession

SHUFFLES = 3  # shuffles whose accuracies are averaged
THREADS = cores()


def accuracy(
    session: InferenceSession,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any],
    decisions: NDArray[np.uint8],
) -> float:
    logits = session.run(pixels, decisions=decisions).logits
    return float((logits.argmax(1) == labels).mean())


def point(
    session: InferenceSession,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any],
    budget: float | None,
    once: InferenceSession | None,
) -> dict[str, Any]:
    """A budget's cost and accuracy, and the controls'; None is what the network was trained for.

    Args:
        session: The network.
        pixels: Images.
        labels: Theirs.
        budget: Asked for.
        once: The same network without its cascade, if it has one.
    """
    draw = np.random.default_rng(0)
    result = session.run(pixels, budget=budget)
    decisions = result.decisions
    shares = option_shares(decisions, session.options)
    permuted, drawn = [], []
    for _ in range(SHUFFLES):
        rows = draw.permutation(len(pixels))
        permuted.append(accuracy(session, pixels, labels, decisions[rows]))
        each = draw.permuted(decisions, axis=0)
        drawn.append(accuracy(session, pixels, labels, each))
    static = np.tile(shares.argmax(1).astype(np.uint8), (len(pixels), 1))
    return {
        "budget": budget,
        "accuracy": float((result.logits.argmax(1) == labels).mean()),
        "cp": session.cost(result).cp,
        "escalation_rate": float(result.escalated.mean()),
        "option_share": dict(zip(session.options.labels, shares.mean(0).tolist(), strict=True)),
        "decision_entropy_bits": float(decision_entropy_bits(shares).mean()),
        "cp_of_the_member_that_answers": session.cost(decisions).cp,
        "permuted_decisions": float(np.mean(permuted)),
        "random_decisions": float(np.mean(drawn)),
        "static_allocation": {
            "accuracy": accuracy(session, pixels, labels, static),
            "cp": session.cost(static).cp,
        },
        "random_escalation": None
        if once is None
        else random_escalation(session, once, pixels, labels, budget),
        "single_member": None if once is None else single_member(once, pixels, labels, budget),
    }


def random_escalation(
    session: InferenceSession,
    once: InferenceSession,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any],
    budget: float | None,
) -> dict[str, float]:
    """As many images escalated, drawn at random: the same members, the same cost."""
    points = session.plan.operating_points
    asked = points.target if budget is None else budget
    *members, _ = points.members_at(np.array([asked], np.float32))
    first, second = (once.run(pixels, budget=float(each[0])) for each in members)
    right = [result.logits.argmax(1) == labels for result in (first, second)]
    escalated = session.run(pixels, budget=budget).escalated
    draw = np.random.default_rng(0)
    accuracies, costs = [], []
    for _ in range(SHUFFLES):
        chosen = draw.permutation(escalated)
        accuracies.append(np.where(chosen, right[1], right[0]).mean())
        executed = Execution(np.flatnonzero(chosen), second.decisions[chosen])
        both = first._replace(executions=(*first.executions, executed))
        costs.append(session.cost(both).cp)
    return {"accuracy": float(np.mean(accuracies)), "cp": float(np.mean(costs))}


def single_member(
    session: InferenceSession,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any],
    budget: float | None,
) -> dict[str, float]:
    result = session.run(pixels, budget=budget)
    right = result.logits.argmax(1) == labels
    return {"accuracy": float(right.mean()), "cp": session.cost(result.decisions).cp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    net = load(given.checkpoint)
    test = load_split(given.data, "test", net.spec.image)
    pixels, labels = test.images[: given.images], test.labels[: given.images]
    session = session_of(net, THREADS)
    reach = session.plan.budgets
    budgets = default_budgets(reach) if reach else ()
    once = None
    if net.operating_points.cascade:
        net.operating_points = net.operating_points.changed(cascade=())
        once = session_of(net, THREADS)
    points = [point(session, pixels, labels, budget, once) for budget in (None, *budgets)]
    static = {
        option.label: accuracy(session, pixels, labels, session.forced(option, len(pixels)))
        for option in session.options
    }
    record = {
        "schema": "fracskip.controls/2",
        "checkpoint": {"name": Path(given.checkpoint).name, "digest": net.digest},
        "data": {"name": test.name, "split": test.split},
        "images": len(pixels),
        "as_trained": points[0],
        "points": points[1:],
        "static": static,
    }
    publish(record, describe_processor(THREADS), given.json)


if __name__ == "__main__":
    main()
