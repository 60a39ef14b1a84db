"""A dynamic network's curve: the same weights and gates at several costs, on a test set.

The lean (`ModelSpec.lean`) moves all decisions at once; nothing is trained again. Beside each point
stand two controls at the same cost: the decisions dealt to other images, and, for each block, a
share of the images drawn by lot that is as large as the gates'.

Run from the repository's root:

    python tools/lean_curve.py models/cpu_resnet74_cifar10.safetensors --json results/curve.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.checkpoint import load
from fracskip.cost.accounting import decision_entropy_bits, option_shares
from fracskip.data import load_split
from fracskip.export.bundle import export_bundle
from fracskip.files import write_atomically
from fracskip.machine import describe_processor, versions
from fracskip.runtime import InferenceSession

LEANS = (-3.0, -1.5, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
DEALS = 2  # shuffles whose accuracies are averaged


def accuracy(
    session: InferenceSession,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any],
    decisions: NDArray[np.uint8],
) -> float:
    logits = session.run(pixels, decisions=decisions).logits
    return float((logits.argmax(1) == labels).mean())


def point(
    session: InferenceSession, pixels: NDArray[np.uint8], labels: NDArray[Any]
) -> dict[str, Any]:
    """One lean's cost and accuracy, and the controls'."""
    draw = np.random.default_rng(0)
    result = session.run(pixels)
    cost = session.cost(result.decisions)
    dealt, drawn = [], []
    for _ in range(DEALS):
        rows = draw.permutation(len(pixels))
        dealt.append(accuracy(session, pixels, labels, result.decisions[rows]))
        each = draw.permuted(result.decisions, axis=0)
        drawn.append(accuracy(session, pixels, labels, each))
    return {
        "accuracy": float((result.logits.argmax(1) == labels).mean()),
        "cp": cost.cp,
        "skipped": float((result.decisions == 0).mean()),
        "decision_entropy_bits": float(
            decision_entropy_bits(option_shares(result.decisions, session.options)).mean()
        ),
        "dealt_to_other_images": float(np.mean(dealt)),
        "drawn_by_each_blocks_shares": float(np.mean(drawn)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--leans", nargs="+", type=float, default=LEANS)
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    net = load(given.checkpoint)
    test = load_split(given.data, "test", net.spec.image)
    pixels, labels = test.images[: given.images], test.labels[: given.images]
    points, static = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.fsk"
        for lean in (net.spec.lean, *given.leans):
            net.spec = net.spec.model_copy(update={"lean": lean})
            export_bundle(net, path)
            session = InferenceSession(path, threads=2)
            points.append({"lean": lean, **point(session, pixels, labels)})
            print(points[-1], flush=True)
        for option in session.options:
            forced = session.forced(option, len(pixels))
            static[option.label] = accuracy(session, pixels, labels, forced)
    record = {
        "schema": "fracskip.curve/1",
        "checkpoint": {"name": Path(given.checkpoint).name, "digest": net.digest},
        "data": {"name": test.name, "split": test.split},
        "images": len(pixels),
        "as_trained": points[0],
        "points": sorted(points[1:], key=lambda p: p["cp"]),
        "static": static,
        "processor": describe_processor(2),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    if given.json:
        write_atomically(Path(given.json), (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
