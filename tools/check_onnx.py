"""Holds an exported ONNX model against torch on a test set, image by image, in ONNX Runtime.

torch is also held against itself in another memory layout: sums in another order move values that
lie between two integers, so a share of paths differs between any two floating-point executions.

Run from the repository's root: python tools/check_onnx.py --json results/onnx_bundled.json
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
import onnxruntime
import torch
from checking import Predictions, in_torch, publish
from numpy.typing import NDArray

from fracskip.checkpoint import load
from fracskip.data import load_split
from fracskip.deployment.onnx import network_onnx
from fracskip.devices import describe
from fracskip.dynamic import DynamicNetwork, preprocess

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def in_onnxruntime(
    model: bytes, net: DynamicNetwork, pixels: NDArray[np.uint8], level: str, budget: float | None
) -> Predictions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    told = {} if budget is None else {"budget": np.array([[budget]], np.float32)}
    logits, decisions, times_ns = [], [], []
    for image in pixels:
        x = preprocess(image[None], net.spec.image).contiguous().numpy()
        begin = np.array([time.perf_counter_ns(), time.thread_time_ns()])
        answer, path = session.run(["logits", "decisions"], {"images": x, **told})
        times_ns.append(np.array([time.perf_counter_ns(), time.thread_time_ns()]) - begin)
        logits.append(answer)
        decisions.append(path)
    return Predictions(np.concatenate(logits), np.concatenate(decisions), np.stack(times_ns) / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = load(arguments.checkpoint)
    # A model is one member, at a budget that it is given.
    net.operating_points = net.operating_points.changed(cascade=())
    budget = None if net.budgets is None else net.operating_points.target
    data = load_split(arguments.data, "test", net.spec.image)
    pixels, labels = data.images[: arguments.images], data.labels[: arguments.images]
    model = network_onnx(net).SerializeToString()
    reference = in_torch(net, pixels, torch.Tensor.contiguous, budget)
    other = in_torch(net, pixels, lambda x: x.contiguous(memory_format=torch.channels_last), budget)
    runs = {
        level: in_onnxruntime(model, net, pixels, level, budget).against(reference, labels)
        for level in LEVELS
    }
    record = {
        "schema": "fracskip.onnx-check/1",
        "checkpoint": {"name": arguments.checkpoint, "digest": net.digest},
        "data": {"name": data.name, "split": data.split},
        "images": len(pixels),
        "budget": budget,
        "batch": 1,
        "threads": 1,
        "model_bytes": len(model),
        "torch": {"accuracy": float((reference.logits.argmax(1) == labels).mean())},
        "torch_channels_last": other.against(reference, labels),
        "onnxruntime": {f"optimisations_{level}": run for level, run in runs.items()},
    }
    publish(
        record,
        describe(torch.device("cpu")),
        arguments.json,
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
    )


if __name__ == "__main__":
    main()
