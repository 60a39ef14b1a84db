"""Records of what a cascade does on a data set, schema `fracskip.cascade/1`.

Shapes: N images, M members, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.data import ImageSet
from fracskip.evaluation.predictions import Progress
from fracskip.evaluation.source import Batches, Source, source_of
from fracskip.intervals import wilson_interval
from fracskip.machine import describe_processor, versions
from fracskip.operating.cascade import Choice
from fracskip.operating.scores import answers_of, score_of
from fracskip.runtime.session import InferenceSession

SCHEMA = "fracskip.cascade/1"


def evaluate_cascade(
    session: InferenceSession,
    data: ImageSet | Batches,
    budgets: Sequence[float | None],
    *,
    name: str = "",
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a cascade at some operating points, and each of its members by itself.

    Every point is executed, not computed from the members' answers. Two controls are computed from
    these: the same share escalated at random, and the same scores given to other images.

    Args:
        session: Of a cascade.
        data: Images of its size and labels; see `fracskip.evaluate`.
        budgets: See `InferenceSession.run`; None is the most accurate point.
        name: What to call the cascade in the record.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        The record.

    Raises:
        ConfigError: if it does not reach a budget.
        DataError: if the data do not fit.
    """
    plan = session.cascade
    assert plan is not None
    choices = [session.choose(budget) for budget in budgets]  # refuses before anything is run
    source = source_of(data, session.class_names, len(plan.members) + len(choices))
    begin = time.perf_counter()
    members = []
    for index in range(len(plan.members)):
        alone = Choice((index,), (), (1.0,), (), plan.bitops[index], 0.0)
        members.append(_run(session, alone, source, batch_size, progress))
    labels = source.labels
    right = np.stack([each["predicted"] == labels for each in members])
    points = []
    for budget, choice in zip(budgets, choices, strict=True):
        found = _run(session, choice, source, batch_size, progress)
        points.append(_point(session, budget, choice, found, labels, members))
    return {
        "schema": SCHEMA,
        "checkpoint": {"name": name or plan.name, "digest": session.digest, "model": plan.name},
        "checkpoint_digest": session.digest,
        "data": {"name": source.name, "split": source.split},
        "images": len(labels),
        "score": plan.score,
        "members": [
            {
                "name": plan.networks[member.network].name,
                "image": list(plan.networks[member.network].image.size),
                "options": list(plan.networks[member.network].options),
                "budget": member.budget,
                "cost": cost,
                **_accuracy(hits),
                "latency_us": _spread(found["latency_us"]),
            }
            for member, cost, hits, found in zip(
                plan.members, plan.bitops, right, members, strict=True
            )
        ],
        "points": points,
        "seconds": time.perf_counter() - begin,
        "device": f"{describe_processor(session.threads)}, {session.engine} engine ({session.isa})",
        "versions": versions(),
    }


def _run(
    session: InferenceSession,
    choice: Choice,
    source: Source,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, NDArray[Any]]:
    """What a cascade answers at a point: of each image all that a record needs."""
    logits, latency_us, cost, answered = [], [], [], []
    for batch in source.batches(batch_size):
        found = session.run_choice(batch, choice)
        assert found.latency_us is not None
        logits.append(found.logits)
        latency_us.append(found.latency_us)
        cost.append(found.cost)
        by = np.zeros(len(batch), np.int64)
        for later, execution in enumerate(found.executions[1:], 1):
            by[execution.rows] = later
        answered.append(by)
        if progress is not None:
            progress(len(batch))
    joined = np.concatenate(logits)
    return {
        "logits": joined,
        "predicted": joined.argmax(1),
        "latency_us": np.concatenate(latency_us),
        "cost": np.concatenate(cost),
        "answered": np.concatenate(answered),
    }


def _point(
    session: InferenceSession,
    budget: float | None,
    choice: Choice,
    found: dict[str, NDArray[Any]],
    labels: NDArray[np.int64],
    members: Sequence[dict[str, NDArray[Any]]],
) -> dict[str, Any]:
    plan = session.cascade
    assert plan is not None
    rates = [float((found["answered"] >= k).mean()) for k in range(len(choice.chain))]
    spent = sum(rate * plan.bitops[m] for rate, m in zip(rates, choice.chain, strict=True))
    hits = found["predicted"] == labels
    point = {
        "budget": budget,
        "chain": list(choice.chain),
        "thresholds": list(choice.thresholds),
        "rates": rates,
        "cost": spent,
        "expected_cost": choice.cost,
        "bitops_ratio": float(found["cost"].mean()),
        **_accuracy(hits),
        "latency_us": _spread(found["latency_us"]),
    }
    if len(choice.chain) > 1:
        # Members by themselves answer logits over temperatures already where these are averaged.
        temperatures = [1.0 if plan.averaged else plan.members[m].temperature for m in choice.chain]
        logits = [members[m]["logits"] for m in choice.chain]
        outputs = answers_of(logits, temperatures, plan.averaged)
        hits_by = np.stack([each.argmax(1) == labels for each in outputs])
        point["random_escalation"] = _at_random(hits_by, rates)
        scores = [score_of(each, plan.score) for each in outputs]
        point["permuted_escalation"] = _permuted(hits_by, scores, choice)
    return point


def _at_random(right: NDArray[np.bool_], rates: Sequence[float]) -> float:
    """Accuracy expected where images are drawn at random for each member."""
    ends = [rate - later for rate, later in zip(rates, [*rates[1:], 0.0], strict=True)]
    return float(sum(share * hits.mean() for share, hits in zip(ends, right, strict=True)))


def _permuted(
    right: NDArray[np.bool_], scores: Sequence[NDArray[np.float32]], choice: Choice
) -> float:
    """Accuracy where each image is escalated by the scores of another."""
    order = np.random.default_rng(0).permutation(right.shape[1])
    answer, reached = right[0].copy(), np.ones(right.shape[1], bool)
    for hits, score, threshold in zip(right[1:], scores, choice.thresholds, strict=False):
        reached &= score[order] < np.float32(threshold)
        answer = np.where(reached, hits, answer)
    return float(answer.mean())


def _accuracy(hits: NDArray[np.bool_]) -> dict[str, Any]:
    share = float(hits.mean())
    return {"accuracy": share, "accuracy_95": list(wilson_interval(share, len(hits)))}


def _spread(latency_us: NDArray[np.float32]) -> dict[str, float]:
    return {
        "mean": float(latency_us.mean()),
        "p50": float(np.median(latency_us)),
        "p99": float(np.quantile(latency_us, 0.99)),
    }
