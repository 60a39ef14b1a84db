"""What a network does on a data set: accuracy, cost, and what its gates decided.

Records are plain JSON values, schema `fracskip.evaluation/1`; the report draws from them alone.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fracskip.cost import account, decision_entropy_bits, option_shares
from fracskip.data import ImageSet
from fracskip.devices import describe, versions
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.options import Option, OptionSet

SCHEMA = "fracskip.evaluation/1"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Predictions:
    """What a network said of a set of images.

    Attributes:
        probabilities: Softmax of the logits, (N, classes).
        decisions: Option indices, (N, gated blocks).
        seconds: Wall time, preprocessing included.
    """

    probabilities: NDArray[np.float32]
    decisions: NDArray[np.int64]
    seconds: float

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image, (N,)."""
        return np.asarray(self.probabilities.argmax(1), dtype=np.int64)


@torch.inference_mode()
def predict(
    net: DynamicNetwork,
    images: NDArray[np.uint8],
    *,
    force: Option | int | str | None = None,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Predictions:
    """Classifies images, in batches, on the device where the network is.

    Args:
        net: The network; it is put into evaluation mode.
        images: uint8 (N, H, W, C), N at least 1.
        force: Execute every block at this option instead of asking the gates.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Raises:
        ConfigError: if the images or the option do not fit the network.
    """
    net.eval()
    device = next(net.parameters()).device
    probabilities, decisions = [], []
    begin = time.perf_counter()
    for start in range(0, max(len(images), 1), batch_size):
        pixels = torch.from_numpy(images[start : start + batch_size]).to(device)
        x = preprocess(pixels, net.spec.image)
        forced = None if force is None else net.forced(force, len(x))
        out = net(x, decisions=forced)
        probabilities.append(out.logits.float().softmax(1).cpu().numpy())
        decisions.append(out.decisions.cpu().numpy())
        if progress is not None:
            progress(len(x))
    return Predictions(
        np.concatenate(probabilities), np.concatenate(decisions), time.perf_counter() - begin
    )


def evaluate(
    net: DynamicNetwork,
    data: ImageSet,
    *,
    name: str = "",
    static: bool = True,
    examples: int = 12,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a network on a labelled data set.

    Args:
        net: The network.
        data: Images and labels, of the network's classes.
        name: What to call the checkpoint in the record.
        static: Also measure the network with every block at each one of its executed options.
        examples: How many easiest and hardest images to keep in the record, with their paths.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        The record.
    """
    predictions = predict(net, data.images, batch_size=batch_size, progress=progress)
    options, decisions = net.options, predictions.decisions
    right = predictions.predicted == data.labels
    cost = account(decisions, options, net.profile)
    shares = option_shares(decisions, options)
    entropy = decision_entropy_bits(shares)
    forced = []
    if static and net.gate is not None:
        forced = [
            _static_point(net, data, option, batch_size, progress)
            for option in options
            if not option.is_skip
        ]
    spec = net.spec
    return {
        "schema": SCHEMA,
        "checkpoint": {
            "name": name or spec.model.name,
            "digest": net.digest,
            "model": spec.model.name,
            "options": list(options.labels),
            "quant": spec.quant.scheme,
            "gate": spec.gate.kind if net.gate is not None else "none",
            "target": spec.target,
        },
        "checkpoint_digest": net.digest,
        "data": {"name": data.name, "split": data.split},
        "images": len(data),
        "accuracy": float(right.mean()),
        "cp": cost.cp,
        "bitops_ratio": cost.bitops_ratio,
        "option_share": _named(shares.mean(0), options),
        "decision_entropy_bits": float(entropy.mean()),
        "seconds": predictions.seconds,
        "device": describe(next(net.parameters()).device),
        "versions": versions(),
        "blocks": [
            {
                "name": block.name,
                "macs": block.branch_macs,
                "option_share": _named(row, options),
                "entropy_bits": float(bits),
            }
            for block, row, bits in zip(net.profile.gated, shares, entropy, strict=True)
        ],
        "classes": _per_class(data, right, decisions, cost.image_cp, options),
        "static": forced,
        "examples": _examples(data, predictions, cost.image_cp, options, examples),
    }


def _named(shares: NDArray[np.float64], options: OptionSet) -> dict[str, float]:
    return {label: float(share) for label, share in zip(options.labels, shares, strict=True)}


def _static_point(
    net: DynamicNetwork,
    data: ImageSet,
    option: Option,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Any]:
    forced = predict(net, data.images, force=option, batch_size=batch_size, progress=progress)
    cost = account(forced.decisions, net.options, net.profile)
    # A static network has no gates to pay for.
    gates = net.profile.gate_macs / net.profile.backbone_macs
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
    decisions: NDArray[np.int64],
    image_cp: NDArray[np.float64],
    options: OptionSet,
) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(data.class_names):
        of_class = data.labels == index
        if not of_class.any():
            continue
        shares = option_shares(decisions[of_class], options).mean(0)
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
            "png": _png(data.images[index]),
        }

    return {
        "easiest": [example(index) for index in order[:count]],
        "hardest": [example(index) for index in order[::-1][:count]],
    }


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
