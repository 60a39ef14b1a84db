"""Records of what a network does on a data set: accuracy, cost, and what its gates decided.

Records are plain JSON values, schema `fracskip.evaluation/1`; the report draws from them alone.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracskip.cost import FirstLooks, account, decision_entropy_bits, option_shares
from fracskip.data import ImageSet
from fracskip.evaluation.predictions import Predictions, Progress, predict_subject
from fracskip.evaluation.subject import Network, Subject, subject_of
from fracskip.machine import versions
from fracskip.options import Option, OptionSet

SCHEMA = "fracskip.evaluation/1"


def evaluate(
    net: Network,
    data: ImageSet,
    *,
    name: str = "",
    budget: float | None = None,
    static: bool = True,
    examples: int = 12,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a network on a labelled data set.

    Args:
        net: A network on any device, or a session.
        data: Images and labels, of the network's classes.
        name: What to call the checkpoint in the record.
        budget: Target computation share, if the network takes one (None: what it was trained for).
        static: Also measure the network with every block at each one of its executed options.
        examples: How many easiest and hardest images to keep in the record, with their paths.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        The record.
    """
    subject = subject_of(net)
    card = subject.card
    predictions = predict_subject(subject, data.images, None, budget, batch_size, progress)
    options, decisions = card.options, predictions.decisions
    right = predictions.predicted == data.labels
    before = predictions.before
    cost = account(decisions, options, card.profile, before)
    shares = option_shares(_looks(decisions, before), options)
    # Of the looks that decided: what differs between two looks says nothing of images.
    entropy = decision_entropy_bits(option_shares(decisions, options))
    forced = []
    if static and not card.is_static:
        forced = [
            _static_point(subject, data, option, batch_size, progress)
            for option in options
            if not option.is_skip
        ]
    return {
        "schema": SCHEMA,
        "checkpoint": {
            "name": name or card.model,
            "digest": card.digest,
            "model": card.model,
            "options": list(options.labels),
            "quant": card.quant,
            "gate": card.gate,
            "target": card.target,
            "macs": card.profile.backbone_macs,
        },
        "checkpoint_digest": card.digest,
        "data": {"name": data.name, "split": data.split},
        "images": len(data),
        "budget": budget,
        "accuracy": float(right.mean()),
        "cp": cost.cp,
        "bitops_ratio": cost.bitops_ratio,
        "second_looks": 0.0 if before is None else float(before.again.mean()),
        "option_share": _named(shares.mean(0), options),
        "decision_entropy_bits": float(entropy.mean()),
        "seconds": predictions.seconds,
        "device": card.device,
        "versions": versions(),
        "blocks": [
            {
                "name": block.name,
                "macs": block.branch_macs,
                "option_share": _named(row, options),
                "entropy_bits": float(bits),
            }
            for block, row, bits in zip(card.profile.gated, shares, entropy, strict=True)
        ],
        "classes": _per_class(data, right, predictions, cost.image_cp, options),
        "static": forced,
        "examples": _examples(data, predictions, cost.image_cp, options, examples),
    }


def _looks(decisions: NDArray[np.int64], before: FirstLooks | None) -> NDArray[np.int64]:
    """Decisions of all looks, one row a look."""
    if before is None:
        return decisions
    return before.all_with(decisions).astype(np.int64)


def _named(shares: NDArray[np.float64], options: OptionSet) -> dict[str, float]:
    return {label: float(share) for label, share in zip(options.labels, shares, strict=True)}


def _static_point(
    subject: Subject,
    data: ImageSet,
    option: Option,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Any]:
    forced = predict_subject(subject, data.images, option, None, batch_size, progress)
    profile = subject.card.profile
    cost = account(forced.decisions, subject.card.options, profile)
    # A static network has no gates to pay for.
    gates = profile.gate_macs / profile.backbone_macs
    return {
        "option": option.label,
        "accuracy": float((forced.predicted == data.labels).mean()),
        "cp": cost.cp,
        "bitops_ratio": cost.bitops_ratio - gates,
        "seconds": forced.seconds,
    }


def _per_class(
    data: ImageSet,
    right: NDArray[np.bool_],
    predictions: Predictions,
    image_cp: NDArray[np.float64],
    options: OptionSet,
) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(data.class_names):
        of_class = data.labels == index
        if not of_class.any():
            continue
        before = None if predictions.before is None else predictions.before.take(of_class)
        looks = _looks(predictions.decisions[of_class], before)
        shares = option_shares(looks, options).mean(0)
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
    data: ImageSet,
    predictions: Predictions,
    image_cp: NDArray[np.float64],
    options: OptionSet,
    count: int,
) -> dict[str, list[dict[str, Any]]]:
    order = np.argsort(image_cp, kind="stable")
    count = min(count, len(order))

    def example(index: int) -> dict[str, Any]:
        return {
            "index": int(index),
            "label": data.class_names[data.labels[index]],
            "predicted": data.class_names[predictions.predicted[index]],
            "cp": float(image_cp[index]),
            "path": [options.labels[choice] for choice in predictions.decisions[index]],
            "first_path": first_path(options, predictions.before, index),
            "png": _png(data.images[index]),
        }

    return {
        "easiest": [example(index) for index in order[:count]],
        "hardest": [example(index) for index in order[::-1][:count]],
    }


def first_path(options: OptionSet, before: FirstLooks | None, index: int) -> list[str] | None:
    """What an image's first look executed; None if there was no second."""
    if before is None or not before.again[index]:
        return None
    return [options.labels[choice] for choice in before.decisions[index]]


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
