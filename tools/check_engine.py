"""Holds the native engine against torch on a test set, image by image, and against itself.

Run from the repository's root: python tools/check_engine.py --json results/engine_parity.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checking import Predictions, in_torch, publish

from fracskip.checkpoint import load
from fracskip.data import load_split
from fracskip.deployment.bundle import export_bundle
from fracskip.devices import describe
from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets


def check(name: str, data: str, images: int, isas: Sequence[str]) -> dict[str, Any]:
    """One checkpoint in torch, and natively on the given instruction sets."""
    net = load(name)
    split = load_split(data, "test", net.spec.image)
    pixels, labels = split.images[:images], split.labels[:images]
    reference = in_torch(net, pixels, torch.Tensor.contiguous)
    other = in_torch(net, pixels, lambda x: x.contiguous(memory_format=torch.channels_last))
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.fsk"
        export_bundle(net, path)
        for isa in isas:
            result = InferenceSession(path, engine="native", isa=isa).run(pixels)
            answers = Predictions(result.logits, result.decisions.astype("int64"))
            engines[isa] = answers.against(reference, labels)
    return {
        "checkpoint": {"name": Path(name).name, "digest": net.digest},
        "stream": net.spec.quant.stream,
        "data": {"name": split.name, "split": split.split},
        "images": len(pixels),
        "torch": {"accuracy": float((reference.logits.argmax(1) == labels).mean())},
        "torch_channels_last": other.against(reference, labels),
        "native": engines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", default=["bundled"])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--isas", nargs="+", default=list(instruction_sets()[-1:]))
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    record = {
        "schema": "fracskip.engine-parity/1",
        "networks": [
            check(name, arguments.data, arguments.images, arguments.isas)
            for name in arguments.checkpoints
        ],
    }
    publish(record, describe(torch.device("cpu")), arguments.json)


if __name__ == "__main__":
    main()
