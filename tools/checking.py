"""What the checking tools share: an executor's answers on a set of images, and a record's end."""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fracskip.deployment.bundle import export_bundle
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.files import write_atomically
from fracskip.machine import versions
from fracskip.runtime import InferenceSession


@dataclass(frozen=True)
class Predictions:
    """What one executor says of a set of images."""

    logits: NDArray[np.float32]
    decisions: NDArray[np.int64]
    times_us: NDArray[np.float64] | None = None  # (images, 2): wall, processor

    def against(self, other: Predictions, labels: NDArray[np.int64]) -> dict[str, Any]:
        """How these answers differ from another executor's."""
        same = self.decisions == other.decisions
        off = np.abs(self.logits - other.logits).max(1)
        record = {
            "accuracy": float((self.logits.argmax(1) == labels).mean()),
            "same_decisions_share": float(same.mean()),
            "same_paths_share": float(same.all(1).mean()),
            "same_class_share": float((self.logits.argmax(1) == other.logits.argmax(1)).mean()),
            "logit_difference": {
                "median": float(np.median(off)),
                "p99": float(np.quantile(off, 0.99)),
                "max": float(off.max()),
            },
        }
        if self.times_us is not None:
            # Wall time; on a machine that does other work too, look at the processor's.
            for kind, column in zip(("latency_us", "processor_us"), self.times_us.T, strict=True):
                p10, median = np.quantile(column, [0.1, 0.5])
                record[kind] = {"median": float(median), "p10": float(p10)}
        return record


@torch.inference_mode()
def in_torch(
    net: DynamicNetwork,
    pixels: NDArray[np.uint8],
    layout: Callable[[torch.Tensor], torch.Tensor],
    budget: float | None = None,
) -> Predictions:
    """The network itself, with images in the given memory layout."""
    logits, decisions = [], []
    for start in range(0, len(pixels), 250):
        out = net(layout(preprocess(pixels[start : start + 250], net.spec.image)), budget=budget)
        logits.append(out.logits.numpy())
        decisions.append(out.decisions.numpy())
    return Predictions(np.concatenate(logits), np.concatenate(decisions))


def session_of(net: DynamicNetwork, threads: int, isa: str = "auto") -> InferenceSession:
    """The network, exported, on the native engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.fsk"
        export_bundle(net, path)
        return InferenceSession(path, threads=threads, isa=isa)


def publish(record: dict[str, Any], device: str, path: str | None, **further_versions: str) -> None:
    """Says where and when a record was made, prints it, and writes it if a path is given."""
    record = {
        **record,
        "device": device,
        "versions": {**versions(), **further_versions},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if path:
        write_atomically(Path(path), (text + "\n").encode())
