"""Records of what a network does on a data set: accuracy, cost, and what its gates decided.

Records are plain JSON values, schema `fracskip.evaluation/2`. They hold no images, but indices of
some and the digest of all, by which a report finds them again.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.config import EXAMPLES, ImageConfig
from fracskip.cost import account, decision_entropy_bits, option_shares
from fracskip.data import ImageSet
from fracskip.data.store import digest
from fracskip.evaluation.cascade_record import evaluate_cascade
from fracskip.evaluation.predictions import Progress, predict_with
from fracskip.evaluation.predictor import Network, Predictor, cascade_session, predictor_of
from fracskip.evaluation.source import Batches, Source, source_of
from fracskip.machine import versions
from fracskip.operating import Prediction
from fracskip.options import Option, OptionSet

SCHEMA = "fracskip.evaluation/2"


def evaluate(
    net: Network,
    data: ImageSet | Batches,
    *,
    name: str = "",
    budget: float | None = None,
    static: bool = True,
    examples: int = EXAMPLES,
    normalised: bool = False,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a network on a labelled data set.

    Args:
        net: A network on any device, a session, or a cascade.
        data: Images and labels, of the network's classes: a set, or an iterable of batches that can
            be gone through again. A batch is a pair, or a dictionary such as {'image', 'label'}, of
            normalised images (B, C, H, W), or of pixels, uint8 (B, H, W, C), which are normalised
            as the network's `spec.image` says, and class numbers (B,) or one-hot labels.
        name: What to call the checkpoint in the record.
        budget: Target computation share, if the network takes one (None: what it was trained for).
        static: Also measure the network with every block at each one of its executed options.
        examples: How many of the cheapest and of the dearest images of a set the record names, with
            their allocations.
        normalised: Floats are normalised, whatever their range is.
        batch_size: Images a batch of a set.
        progress: Called with the number of images done after each batch.

    Returns:
        The record; of a cascade one of schema `fracskip.cascade/1`.

    Raises:
        ConfigError: if the budget does not fit the network, or it has no two classes.
        DataError: if the data do not fit; which batch is named.
    """
    session = cascade_session(net)
    if session is not None:
        return evaluate_cascade(
            session, data, [budget], name=name, batch_size=batch_size, progress=progress
        )
    predictor = predictor_of(net)
    info = predictor.info
    alone = [option for option in info.options if static and not (info.is_static or option.is_skip)]
    source = source_of(data, info.class_names, 1 + len(alone))
    begin = time.perf_counter()
    prediction = predict_with(
        predictor, source.batches(batch_size), None, budget, progress, normalised
    )
    seconds = time.perf_counter() - begin
    options, labels = info.options, source.labels
    right = prediction.predicted == labels
    cost = account(prediction.executions, options, info.profile)
    shares = option_shares(_executed(prediction), options)
    # Of the members that answered: what differs between two members says nothing of images.
    entropy = decision_entropy_bits(option_shares(prediction.decisions, options))
    forced = [
        _static_point(predictor, source, option, batch_size, progress, normalised)
        for option in alone
    ]
    return {
        "schema": SCHEMA,
        "checkpoint": {
            "name": name or info.model,
            "digest": info.digest,
            "model": info.model,
            "options": list(options.labels),
            "quant": info.quant,
            "gate": info.gate,
            "target": info.target,
            "macs": info.profile.backbone_macs,
        },
        "checkpoint_digest": info.digest,
        "data": {
            "name": source.name,
            "split": source.split,
            **_identity(data, info.image, examples),
        },
        "images": len(labels),
        "budget": budget,
        "accuracy": float(right.mean()),
        "cp": cost.cp,
        "bitops_ratio": cost.bitops_ratio,
        "escalation_rate": float(prediction.escalated.mean()),
        "option_share": _named(_over_blocks(shares), options),
        "decision_entropy_bits": float(entropy.mean()) if len(entropy) else 0.0,
        "seconds": seconds,
        "device": info.device,
        "versions": versions(),
        "blocks": [
            {
                "name": block.name,
                "macs": block.branch_macs,
                "option_share": _named(row, options),
                "entropy_bits": float(bits),
            }
            for block, row, bits in zip(info.profile.gated, shares, entropy, strict=True)
        ],
        "classes": _per_class(source, labels, right, prediction, cost.image_cp, options),
        "static": forced,
        "examples": _examples(data, prediction, cost.image_cp, options, examples),
    }


def _executed(
    prediction: Prediction[NDArray[Any]], of: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """Decisions of all members, one row an image and member; only those `of` some images."""
    return np.concatenate(
        [each.decisions if of is None else each.decisions[of[each.rows]]
         for each in prediction.executions]
    )  # fmt: skip


def _named(shares: NDArray[np.float64], options: OptionSet) -> dict[str, float]:
    return {label: float(share) for label, share in zip(options.labels, shares, strict=True)}


def _static_point(
    predictor: Predictor,
    source: Source,
    option: Option,
    batch_size: int,
    progress: Progress | None,
    normalised: bool,
) -> dict[str, Any]:
    batches = source.batches(batch_size)
    begin = time.perf_counter()
    forced = predict_with(predictor, batches, option, None, progress, normalised)
    seconds = time.perf_counter() - begin
    profile = predictor.info.profile
    cost = account(forced.executions, predictor.info.options, profile)
    # A static network has no gates to pay for.
    gates = profile.gate_macs / profile.backbone_macs
    return {
        "option": option.label,
        "accuracy": float((forced.predicted == source.labels).mean()),
        "cp": cost.cp,
        "bitops_ratio": cost.bitops_ratio - gates,
        "seconds": seconds,
    }


def _over_blocks(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of blocks' shares; a network without blocks has one option, for everything."""
    return np.asarray(shares.mean(0) if len(shares) else np.ones(shares.shape[1]))


def _per_class(
    source: Source,
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    prediction: Prediction[NDArray[Any]],
    image_cp: NDArray[np.float64],
    options: OptionSet,
) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(source.class_names):
        of_class = labels == index
        if not of_class.any():
            continue
        shares = _over_blocks(option_shares(_executed(prediction, of_class), options))
        rows.append(
            {
                "name": name,
                "images": int(of_class.sum()),
                "accuracy": float(right[of_class].mean()),
                "cp": float(image_cp[of_class].mean()),
                "option_share": _named(shares, options),
            }
        )
    return rows


def _examples(
    data: ImageSet | Batches,
    prediction: Prediction[NDArray[Any]],
    image_cp: NDArray[np.float64],
    options: OptionSet,
    count: int,
) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(data, ImageSet):
        return {"cheapest": [], "dearest": []}
    order = np.argsort(image_cp, kind="stable")
    count = min(count, len(order))
    predicted, decisions = prediction.predicted, prediction.decisions

    def example(index: int) -> dict[str, Any]:
        return {
            "index": int(index),
            "label": data.class_names[data.labels[index]],
            "predicted": data.class_names[predicted[index]],
            "cp": float(image_cp[index]),
            "allocation": [options.labels[choice] for choice in decisions[index]],
            "first_allocation": first_allocation(options, prediction, index),
        }

    return {
        "cheapest": [example(index) for index in order[:count]],
        "dearest": [example(index) for index in order[::-1][:count]],
    }


def first_allocation(
    options: OptionSet, prediction: Prediction[NDArray[Any]], row: int
) -> list[str] | None:
    """What a cascade's first member executed for an image that was escalated; None for others."""
    first, *others = prediction.executions
    if not any(row in other.rows for other in others):
        return None
    return [options.labels[choice] for choice in first.decisions[row]]


def _identity(data: ImageSet | Batches, image: ImageConfig, examples: int) -> dict[str, Any]:
    """What finds the images again that a record names; nothing where it names none."""
    if not isinstance(data, ImageSet) or not examples:
        return {}
    return {"digest": digest(data.images), "image": image.model_dump(mode="json")}
