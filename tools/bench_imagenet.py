"""ResNet-50 and MobileNetV2 at 224 x 224, one image a call, one thread, beside other engines.

    python tools/bench_imagenet.py build/imagenet --json results/bench_imagenet.json

The folder is what tools/imagenet_bundles.py wrote: random weights, so times alone are told. All
contenders of a network are interleaved in one run; ratios are taken within rounds. How far time
follows the blocks that are executed is measured beside it, by skipping a random half of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fracskip.bench import conditions, onnx_engine, openvino_engine
from fracskip.bench.blocks import gate_time, path_times
from fracskip.bench.contender import Contender
from fracskip.bench.native import native_contenders
from fracskip.bench.record import row
from fracskip.bench.subject import Images, Plain
from fracskip.bench.timing import measure, ratio
from fracskip.data import ImageSet
from fracskip.deployment.onnx import static_onnx
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import Bundle, read_bundle

NETWORKS = ("resnet50", "mobilenet_v2")
REFERENCE = "openvino int8"


@dataclass(frozen=True)
class BundlePlain(Plain):
    """A plain network that is known as a static bundle alone."""

    bundle: Bundle = field(kw_only=True)

    def onnx(self, batch: int | str) -> onnx.ModelProto:
        """See `Plain.onnx`."""
        return static_onnx(self.bundle.plan, self.bundle.tensors, batch)


def random_images(bundle: Bundle, count: int) -> Images:
    draw = np.random.default_rng(0)
    image = bundle.plan.image

    def pixels(number: int) -> NDArray[np.uint8]:
        shape = (number, *image.size, image.channels)
        return draw.integers(0, 256, shape, dtype=np.uint8)

    labels = np.zeros(count, np.int64)
    names = bundle.plan.class_names
    test = ImageSet(pixels(count), labels, names, "random pixels", "test", "made here")
    return Images(test, image, pixels(16))


def contenders(folder: Path, name: str, images: Images, threads: int) -> list[Contender]:
    """All that is timed of one network."""
    static = read_bundle(folder / f"{name}.static.fsk")
    plain = BundlePlain(
        f"torchvision/{name}", "random weights", static.digest, None, static.plan.image,  # type: ignore[arg-type]
        bundle=static,
    )  # fmt: skip
    many = {"threads": threads, "cores": threads}
    found = native_contenders(folder / f"{name}.dynamic.fsk", images, engine="native", **many)  # type: ignore[arg-type]
    found = [one for one in found if "skipped" not in one.name]
    ort = onnx_engine.quantised(plain, images, onnx_engine.Recipe())
    others = [
        onnx_engine.ort_fp32(plain, images, **many),
        onnx_engine.ort_int8(plain, images, onnx_engine.Recipe(), **many),
        openvino_engine.ov_float(plain, images, precision="fp32", **many),
        openvino_engine.ov_float(plain, images, precision="bf16", **many),
        openvino_engine.ov_from_onnx(ort, plain, images, {}, **many),
    ]
    names = ("onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16", REFERENCE)
    return found + [replace(one, name=name) for one, name in zip(others, names, strict=True)]


def proportion(session: InferenceSession, pixels: NDArray[np.uint8], rounds: int) -> dict[str, Any]:
    """How far time follows what is executed, all others at 8 bits."""
    plan = session.plan
    top, free = session.options.index(8), ~np.array(plan.unskippable)
    full = np.full(len(free), top, np.uint8)
    draw = np.random.default_rng(0)
    singles, halves = [], []
    for column in np.flatnonzero(free):
        path = full.copy()
        path[column] = 0
        singles.append(path)
    for _ in range(12):
        path = full.copy()
        chosen = draw.permutation(np.flatnonzero(free))
        path[chosen[: len(chosen) // 2]] = 0
        halves.append(path)
    times = np.median(path_times(session, pixels, [full, *singles, *halves], rounds), axis=1)
    saved = times[0] - times[1 : 1 + len(singles)]
    by_column = dict(zip(np.flatnonzero(free).tolist(), saved.tolist(), strict=True))
    predicted = [
        times[0] - sum(by_column[c] for c in np.flatnonzero(path == 0).tolist()) for path in halves
    ]
    measured = times[1 + len(singles) :]
    off = np.abs(measured / np.array(predicted) - 1)
    return {
        "all_us": float(times[0]),
        "saved_by_skipping_us": [float(value) for value in saved],
        "half_skipped_us": [float(value) for value in measured],
        "half_skipped_predicted_us": [float(value) for value in predicted],
        "largest_deviation": float(off.max()),
        "mean_deviation": float(off.mean()),
    }


def bench(folder: Path, name: str, count: int, rounds: int) -> dict[str, Any]:
    dynamic = folder / f"{name}.dynamic.fsk"
    images = random_images(read_bundle(dynamic), count)
    found = contenders(folder, name, images, 1)
    samples = measure(found, count, rounds)
    reference = samples[REFERENCE]
    rows = []
    for one in found:
        entry = row(one, samples[one.name], images.test, None)
        entry = {key: entry[key] for key in entry if "accuracy" not in key}
        entry[f"times_{REFERENCE.replace(' ', '_')}"] = ratio(samples[one.name], reference)
        rows.append(entry)
        times = samples[one.name].statistics(samples[one.name].cpu_us, calm=False)
        print(f"{name:14} {one.name:28} {times['mean'] / 1e3:8.2f} ms", file=sys.stderr)
    session = InferenceSession(dynamic, engine="native")
    pixels = images.test.images[:4]
    follows = proportion(session, pixels, 2 * rounds)
    decided = InferenceSession(folder / f"{name}.gates.fsk", engine="native")
    gate = gate_time(decided, pixels, 24 * rounds)
    blocks = len(session.plan.gated_names)
    print(
        f"{name}: halves skipped within {follows['largest_deviation']:.1%} (mean "
        f"{follows['mean_deviation']:.1%}); a gate "
        f"{gate:.1f} us, {gate * blocks / follows['all_us']:.2%} of all at 8 bits",
        file=sys.stderr,
    )
    return {
        "network": f"torchvision/{name}",
        "image": list(session.image.size),
        "images": count,
        "rounds": rounds,
        "isa": session.isa,
        "contenders": rows,
        "skipping": follows,
        "gate_us": gate,
        "gates_share_of_8_bits": gate * blocks / follows["all_us"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    before = conditions.load_average()
    found = [bench(options.folder, name, options.images, options.rounds) for name in NETWORKS]
    record = {
        "schema": "fracskip.bench-imagenet/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights": "random",
        "threads": 1,
        "machine": conditions.describe(before),
        "versions": conditions.all_versions(),
        "networks": found,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
