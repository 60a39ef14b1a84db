"""`fracskip quantize`: a trained network to integers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fracskip.cli import console, plain
from fracskip.config import ImageConfig
from fracskip.data import ImageSet, load_split
from fracskip.errors import ConfigError
from fracskip.files import require_regular_file
from fracskip.options import PRESETS
from fracskip.runtime.bundle import SUFFIX

if TYPE_CHECKING:
    from fracskip.dynamic import DynamicNetwork

CHECKPOINT = ".safetensors"


def run_quantize(options: argparse.Namespace) -> int:
    """A plain network and training images to a file."""
    from fracskip.dynamic import quantize
    from fracskip.evaluation import predict

    target = Path(options.to)
    write = _writer(target)
    names = options.options.split(",")
    net = _network(options)
    calibration, others, class_names = _images(options, net.spec.image)
    found = quantize(
        net.plain(),
        calibration,
        options=names[0] if names[0] in PRESETS else names,
        image=net.spec.image,
        class_names=class_names if len(class_names) == len(net.spec.class_names) else None,
        name=net.spec.model.name,
    )
    write(found, target)
    console.say(f"{found.spec.model.name}: {target} ({target.stat().st_size:,} bytes)")
    chosen = found.notes["quantisation"]
    console.say(
        f"{chosen['images']} training images of {options.data}; closest to the float network: "
        + ", ".join(f"{label} bits {taken}" for label, taken in chosen["taken"].items())
    )
    if found.gate is not None:
        console.say("its gates are yet to be trained: fracskip.fit")
        return 0
    wanted, given = (predict(each, others).logits for each in (net, found))
    same = float((wanted.argmax(1) == given.argmax(1)).mean())
    console.say(
        f"on {len(others)} other training images {console.percent(same)} of its answers are the "
        f"float network's; signal-to-noise ratio of the logits {_decibels(wanted, given):.1f} dB"
    )
    return 0


def _writer(target: Path) -> Callable[..., object]:
    """What writes a file of the name.

    Raises:
        ConfigError: if it has none of the endings.
    """
    if target.suffix == CHECKPOINT:
        from fracskip.checkpoint import save

        return lambda net, path: save(net, path, notes=net.notes, packed=True)
    from fracskip.deployment import writer_for

    if target.suffix not in (SUFFIX, ".onnx"):
        raise ConfigError(
            f"{target} ends in none of {SUFFIX}, .onnx and {CHECKPOINT}: choose one of them"
        )
    return writer_for(target)


def _network(options: argparse.Namespace) -> DynamicNetwork:
    """The plain network that the words name, as a static one in full."""
    if options.model is not None:
        return plain.load(options)
    plain.refuse_alone(options)
    require_regular_file(options.checkpoint, "checkpoint")
    from fracskip.checkpoint import load

    net = load(options.checkpoint)
    if net.options.labels != ("full",):
        raise ConfigError(
            f"{options.checkpoint} has the options {', '.join(net.options.labels)}: a plain "
            "network is quantised; give one whose options are 'full' alone, or --model and "
            "--weights"
        )
    return net


def _images(
    options: argparse.Namespace, image: ImageConfig
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    """Images to calibrate on, others to compare answers on, and what their classes are called."""
    with console.decoding() as progress:
        data: ImageSet = load_split(options.data, "train", image, progress=progress)
    for note in data.notes:
        console.remark(note)
    # Evenly spaced: sets that are sorted by class keep all their classes.
    count = min(2 * options.images, len(data))
    rows = np.linspace(0, len(data) - 1, count).round().astype(int)
    chosen = rows[::2], rows[1::2] if count > 1 else rows
    return data.images[chosen[0]], data.images[chosen[1]], data.class_names


def _decibels(wanted: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> float:
    """Variance of logits over images to their mean squared error."""
    signal = float(np.square(wanted - wanted.mean(0)).sum())
    noise = float(np.square(wanted - given).sum())
    return float(10 * np.log10(signal / noise)) if signal and noise else float("inf")
