"""Static int8 networks of torchvision and timm, one image a call, beside OpenVINO and ONNX Runtime.

    python tools/bench_static.py build/static --json results/bench_static.json

The folder is what tools/static_bundles.py wrote: random weights, so times alone are told. All
contenders of a network and a number of threads are interleaved in one run. A ratio is that of
median times within a round, and the median over the rounds is kept. OpenVINO counts with the faster
of NNCF's presets. `--isa` holds both engines to an instruction set; ONNX Runtime can't be held and
is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_imagenet import BundlePlain, random_images
from numpy.typing import NDArray

from fracskip.bench import conditions
from fracskip.bench.contender import Contender
from fracskip.bench.timing import Samples, measure
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import read_bundle

# What OpenVINO's kernels call the sets.
ONEDNN = {"avx2": "AVX2", "avx512_vnni": "AVX512_CORE_VNNI", "amx": "AVX512_CORE_AMX"}
PRESETS = ("PERFORMANCE", "MIXED")
OURS = ("native 8 bits", "native 4 bits")


def native(path: Path, name: str, images: Any, threads: int, isa: str) -> Contender:
    session = InferenceSession(path, threads=threads, engine="native", isa=isa)

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(image).logits
        return logits

    return Contender(
        name=name,
        engine="native",
        precision="int8",
        role="backbone",
        network=session.plan.name,
        inputs=np.split(images.test.images, len(images.test.images)),
        run=run,
        settings={"isa": session.isa, "threads": threads, "input": "uint8 pixels"},
    )


def others(folder: Path, name: str, images: Any, threads: int, free: bool) -> Iterator[Contender]:
    from fracskip.bench import onnx_engine, openvino_engine

    full = read_bundle(folder / f"{name}.full.fsk")
    image = full.plan.image
    plain = BundlePlain(full.plan.name, "random weights", full.digest, None, image, bundle=full)  # type: ignore[arg-type]
    many = {"threads": threads, "cores": threads}
    for preset in PRESETS:
        one = openvino_engine.ov_nncf(plain, images, preset, **many)
        yield replace(one, name=f"openvino {preset}")
    if free:
        one = onnx_engine.ort_int8(plain, images, onnx_engine.Recipe(), **many)
        yield replace(one, name="onnxruntime")


def timed(one: Contender, samples: Samples, best: Samples) -> dict[str, Any]:
    found, reference = (each.statistics(each.wall_us, calm=False) for each in (samples, best))
    ratios = np.divide(found["round_medians"], reference["round_medians"])
    return {
        "name": one.name,
        "engine": one.engine,
        "settings": dict(one.settings),
        "latency_us": found,
        "times_openvino": {
            "median": float(np.median(ratios)),
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
        },
    }


def bench(
    folder: Path, name: str, threads: int, isa: str, count: int, rounds: int
) -> dict[str, Any]:
    images = random_images(read_bundle(folder / f"{name}.8bits.fsk"), count)
    found = [
        native(folder / f"{name}.{ours.split()[1]}bits.fsk", ours, images, threads, isa)
        for ours in OURS
    ]
    found += others(folder, name, images, threads, isa == "auto")
    samples = measure(found, count, rounds)
    best = min(
        (samples[f"openvino {preset}"] for preset in PRESETS),
        key=lambda each: float(np.median(each.wall_us)),
    )
    rows = [timed(one, samples[one.name], best) for one in found]
    for row in rows:
        share = row["times_openvino"]["median"]
        typical = row["latency_us"]["p50"] / 1e3
        print(
            f"{name:24} {threads} {row['name']:22} {typical:7.2f} ms {share:.2f}", file=sys.stderr
        )
    return {
        "network": found[0].network,
        "image": list(images.image.size),
        "threads": threads,
        "isa": found[0].settings["isa"],
        "contenders": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--isa", default="auto", choices=("auto", *ONEDNN))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.isa != "auto":  # read when oneDNN is loaded
        os.environ["ONEDNN_MAX_CPU_ISA"] = ONEDNN[options.isa]
    before = conditions.load_average()
    names = sorted(path.name.split(".")[0] for path in options.folder.glob("*.8bits.fsk"))
    found = [
        bench(options.folder, name, threads, options.isa, options.images, options.rounds)
        for threads in options.threads
        for name in names
    ]
    record = {
        "schema": "fracskip.bench-static/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights": "random",
        "images": options.images,
        "rounds": options.rounds,
        "machine": conditions.describe(before),
        "versions": conditions.all_versions(),
        "networks": found,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
