"""The other engines, each set up as well as we can, running a plain network.

Packages are imported when an engine is asked for: none of them is needed to read this module.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fracskip.bench.conditions import has_vnni, processor
from fracskip.bench.contender import Contender, Role
from fracskip.bench.selection import choose, fastest, first_accuracy
from fracskip.bench.subject import Images, Plain

OURS = ("native", "portable")
PEERS = ("torch", "torch-compile", "onnxruntime", "openvino")
QUANTISING = ("onnxruntime", "openvino")
_PACKAGES = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "onnxruntime", "openvino"),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What peers are built for.

    Attributes:
        images: Test and calibration images.
        threads: For one image.
        cores: Threads for throughput.
        say: Told what is being built, for building takes a while.
    """

    images: Images
    threads: int
    cores: int
    say: Say


def obstacle(engine: str) -> str:
    """What keeps a peer from running here, and what to do about it; '' if nothing does."""
    wanted = _PACKAGES.get(engine, ())
    packages = [name for name in wanted if importlib.util.find_spec(name) is None]
    if packages:
        return f"needs {' and '.join(packages)}: pip install 'fracskip[bench]'"
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if engine == "torch-compile" and not any(map(shutil.which, compilers)):
        return "needs a C++ compiler, and none was found: install g++"
    return ""


def float_contenders(engine: str, plain: Plain, bench: Bench) -> list[Contender]:
    """A peer at full precision, and in bfloat16 where the processor computes in it."""
    found = []
    for precision in _float_precisions(engine):
        bench.say(f"building {engine} {precision}")
        candidates = _float_candidates(engine, precision, plain, bench)
        found.append(
            _named(choose(candidates, bench.images.test.labels, threads=bench.threads), "backbone")
        )
    return found


def int8_contender(
    engine: str, plain: Plain, bench: Bench, reference: float, role: Role = "backbone"
) -> Contender:
    """A peer at 8 bits: post-training quantisation, the best of what it offers.

    Args:
        engine: One of `QUANTISING`.
        plain: The network at full precision.
        bench: Images and threads.
        reference: Accuracy of the network at full precision on the images of `choose`.
        role: What the network is in the comparison.
    """
    candidates = _int8_candidates(engine, plain, bench)
    labels = bench.images.test.labels
    return _named(choose(candidates, labels, reference, threads=bench.threads), role)


def fastest_of(contenders: Sequence[Contender], bench: Bench) -> str:
    """The engine of the fastest contender."""
    images = len(bench.images.test)
    return fastest(contenders, images, threads=bench.threads).engine


def reference_accuracy(plain: Plain, bench: Bench) -> float:
    """Accuracy at full precision, to hold quantised networks against."""
    from fracskip.bench.torch_engines import torch_contender

    one = torch_contender(
        plain,
        bench.images,
        compiled=False,
        precision="fp32",
        threads=bench.threads,
        cores=bench.cores,
    )
    return first_accuracy(one, bench.images.test.labels)


def _named(one: Contender, role: Role) -> Contender:
    name = f"{one.engine} {one.precision}"
    return replace(one, name=f"{name}, {one.network}" if role == "frontier" else name, role=role)


def _float_precisions(engine: str) -> list[Any]:
    from fracskip.bench.torch_engines import precisions

    return ["fp32"] if engine == "onnxruntime" else precisions()


def _float_candidates(engine: str, precision: Any, plain: Plain, bench: Bench) -> list[Contender]:
    counts = {"threads": bench.threads, "cores": bench.cores}
    if engine == "onnxruntime":
        from fracskip.bench.onnx_engine import ort_fp32

        return [ort_fp32(plain, bench.images, **counts)]
    if engine == "openvino":
        from fracskip.bench.openvino_engine import ov_float

        return [ov_float(plain, bench.images, precision=precision, **counts)]
    from fracskip.bench.torch_engines import torch_contender

    compiled = engine == "torch-compile"
    return [torch_contender(plain, bench.images, compiled=compiled, precision=precision, **counts)]


def _int8_candidates(engine: str, plain: Plain, bench: Bench) -> list[Contender]:
    from fracskip.bench.onnx_engine import ort_int8, quantised, recipes

    counts = {"threads": bench.threads, "cores": bench.cores}
    ways = recipes(has_vnni(processor()[1]))
    found = []
    if engine == "onnxruntime":
        for way in ways:
            bench.say(f"quantising {plain.name} for {engine}: {_words(way)}")
            found.append(ort_int8(plain, bench.images, way, **counts))
        return found
    from fracskip.bench.openvino_engine import has_nncf, ov_from_onnx, ov_nncf

    for way in [way for way in ways if way.format == "QDQ"]:
        bench.say(f"quantising {plain.name} for {engine}: {_words(way)}")
        model = quantised(plain, bench.images, way)
        found.append(ov_from_onnx(model, plain, bench.images, asdict(way), **counts))
    if has_nncf():
        for preset in ("PERFORMANCE", "MIXED"):
            bench.say(f"quantising {plain.name} for {engine}: nncf {preset}")
            found.append(ov_nncf(plain, bench.images, preset, **counts))
    return found


def _words(recipe: Any) -> str:
    tree = asdict(recipe)
    parts = [tree["format"], tree["calibration"], tree["activations"], tree["weights"]]
    parts += ["per channel"] if tree["per_channel"] else []
    parts += ["reduced range"] if tree["reduce_range"] else []
    return ", ".join(parts)
