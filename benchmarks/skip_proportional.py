"""Does skipping save time in proportion? Measured time against the sum of what is executed.

Random subsets of k blocks are skipped, k from 0 to all, and each path is timed. Two models say what
a path should take. Both are sums: stem and head, and one time for each block that is executed.

- alone: each block timed by itself (all others skipped, against all skipped), its weights being in
  the nearest cache;
- fitted: one time for each shape of block, by least squares over one half of the paths, held
  against the other half: what blocks take where weights are as far away as a network leaves them.

Last, images go by their gates, and their times are held against the blocks' times alone plus one
gate's time a block.

Times are the engine's own, single images, all paths interleaved in random order; of each image's
rounds the lower quartile, of the images the median.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.bench.blocks import BlockShape, block_shapes, gate_time, path_times
from fracskip.bench.conditions import all_versions, describe, load_average
from fracskip.data import load_sample
from fracskip.errors import ConfigError
from fracskip.report.latency import skipped_latency
from fracskip.report.svg import standalone
from fracskip.runtime import InferenceSession

IMAGES = 16
Paths = list[NDArray[np.uint8]]


def alone(base: NDArray[np.uint8], option: int) -> Paths:
    """All skipped, then each block executed alone."""
    rows = [base]
    for block in range(len(base)):
        path = base.copy()
        path[block] = option
        rows.append(path)
    return rows


def fitted(
    paths: NDArray[np.uint8], times: NDArray[np.float64], shapes: list[BlockShape]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions for each half of the paths from the other, and the coefficients over all."""
    counts = [(paths[:, list(shape.columns)] > 0).sum(1) for shape in shapes]
    design = np.stack([np.ones(len(paths)), *counts], axis=1)
    predicted = np.zeros(len(paths))
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - half.start, None, 2)
        coefficients, *_ = np.linalg.lstsq(design[other], times[other])
        predicted[half] = design[half] @ coefficients
    whole, *_ = np.linalg.lstsq(design, times)
    return predicted, whole


def subsets(blocks: int, option: int, each: int, draw: np.random.Generator) -> Paths:
    """For every k, paths with k random blocks skipped; only one where all or none are."""
    rows = []
    for k in range(blocks + 1):
        for _ in range(each if 0 < k < blocks else 1):
            path = np.full(blocks, option, dtype=np.uint8)
            path[draw.permutation(blocks)[:k]] = 0
            rows.append(path)
    return rows


def by_the_gates(session: InferenceSession, rounds: int, images: int) -> dict[str, Any]:
    """Images by their gates against the model: every block's every option timed alone."""
    if session.plan.operating_points.cascade:
        raise ConfigError("the model is of one member, and this network is a cascade of two")
    pixels = load_sample().images[:images]
    base = np.zeros(len(session.plan.gated), dtype=np.uint8)
    paths = [base]
    for option in range(1, len(session.options)):
        paths += alone(base, option)[1:]
    few = np.median(path_times(session, pixels[:IMAGES], paths, rounds), axis=1)
    gains = (few[1:] - few[0]).reshape(len(session.options) - 1, len(base))
    table = np.concatenate([np.zeros((1, len(base))), gains])
    gate = gate_time(session, pixels[:IMAGES], rounds)
    decisions = session.run(pixels).decisions
    measured = path_times(session, pixels, [None], rounds)[0]
    model = few[0] + table[decisions, np.arange(len(base))].sum(1) + gate * len(base)
    return {
        "images": images,
        "gate_us": gate,
        "measured_us": float(measured.mean()),
        "model_us": float(model.mean()),
        "relative_deviation_of_the_mean": float(measured.mean() / model.mean() - 1),
        "relative_deviation_p95": float(np.percentile(np.abs(measured / model - 1), 95)),
        "correlation": float(np.corrcoef(measured, model)[0, 1]) if np.ptp(model) else None,
        "per_image": [
            {"measured_us": float(one), "model_us": float(other)}
            for one, other in zip(measured, model, strict=True)
        ],
    }


def prove(session: InferenceSession, option: int, each: int, rounds: int) -> dict[str, Any]:
    """Times the blocks alone and the subsets, all in one interleaved run."""
    blocks = len(session.plan.gated)
    base = np.zeros(blocks, dtype=np.uint8)
    mixed = subsets(blocks, option, each, np.random.default_rng(0))
    pixels = load_sample().images[:IMAGES]
    times = np.median(path_times(session, pixels, alone(base, option) + mixed, rounds), axis=1)
    single, measured = np.split(times, [blocks + 1])
    block_us = single[1:] - single[0]
    shapes = block_shapes(session.plan)
    predicted, coefficients = fitted(np.stack(mixed), measured, shapes)
    points = [
        {
            "skipped": int((path == 0).sum()),
            "measured_us": float(time),
            "fitted_us": float(fit),
            "alone_us": float(single[0] + block_us[path > 0].sum()),
        }
        for path, time, fit in zip(mixed, measured, predicted, strict=True)
    ]
    return {
        "option": session.options.labels[option],
        "blocks": blocks,
        "stem_and_head_us": float(single[0]),
        "block_alone_us": [float(value) for value in block_us],
        "block_fitted_us": {
            shape.words: float(value) for shape, value in zip(shapes, coefficients[1:], strict=True)
        },
        "points": points,
        "deviation": {model: _deviation(points, f"{model}_us") for model in ("fitted", "alone")},
    }


def _deviation(points: list[dict[str, Any]], model: str) -> dict[str, float]:
    shares = np.array([abs(point["measured_us"] / point[model] - 1) for point in points])
    return {"max": float(shares.max()), "mean": float(shares.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="bundled")
    parser.add_argument("--options", nargs="+", metavar="OPTION", help="all that execute")
    parser.add_argument("--subsets", type=int, default=6, help="random subsets for each k")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--images", type=int, default=200, help="images that go by their gates")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--figure", metavar="FILE")
    arguments = parser.parse_args()
    before = load_average()
    session = InferenceSession(arguments.bundle, engine="native")
    if not session.options.can_skip or session.plan.gate is None:
        raise ConfigError(f"{arguments.bundle} cannot skip: give a bundle with gates")
    wanted = arguments.options or [label for label in session.options.labels if label != "skip"]
    proofs = []
    for label in wanted:
        option = session.options.index(label)
        proof = prove(session, option, arguments.subsets, arguments.rounds)
        proofs.append(proof)
        words = "; ".join(
            f"{model}: within {100 * share['max']:.1f}%, mean {100 * share['mean']:.1f}%"
            for model, share in proof["deviation"].items()
        )
        print(f"others at {label}, {len(proof['points'])} paths: {words}", flush=True)
    gates = by_the_gates(session, arguments.rounds, arguments.images)
    print(
        f"by the gates: {gates['measured_us']:.1f} µs measured, {gates['model_us']:.1f} µs by the "
        f"model ({100 * gates['relative_deviation_of_the_mean']:+.1f}%), a gate "
        f"{gates['gate_us']:.2f} µs"
    )
    if arguments.json:
        record = {
            "schema": "fracskip.skip-proportional/1",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "bundle": {
                "name": arguments.bundle,
                "digest": session.digest,
                "model": session.plan.name,
            },
            "isa": session.isa,
            "images": IMAGES,
            "rounds": arguments.rounds,
            "machine": describe(before),
            "versions": all_versions(),
            "forced": proofs,
            "by_the_gates": gates,
            "max_relative_deviation": {
                model: max(proof["deviation"][model]["max"] for proof in proofs)
                for model in ("fitted", "alone")
            },
        }
        Path(arguments.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.figure:
        figure = standalone(skipped_latency(proofs))
        Path(arguments.figure).write_text(figure, encoding="utf-8")


if __name__ == "__main__":
    main()
