"""ONNX Runtime as a peer, and its quantisation, whose models OpenVINO reads too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from fracskip.bench.contender import Contender, Load, Logits, Precision
from fracskip.bench.quiet import quietly
from fracskip.bench.subject import Images, Plain

BATCH = 64
BATCH_AXIS = "batch"


@dataclass(frozen=True)
class Recipe:
    """One way to quantise after training.

    Attributes:
        format: 'QDQ' (pairs of quantise and dequantise) or 'QOperator' (integer operators).
        calibration: How ranges are found: 'MinMax', 'Percentile' or 'Entropy'.
        activations: 'QUInt8' or 'QInt8'.
        weights: Likewise.
        per_channel: One scale an output channel, or one a tensor.
        reduce_range: Weights of 7 bits, so that sums of two products fit 16 bits: what ONNX
            Runtime's documentation advises where the processor has no VNNI.
    """

    format: str = "QDQ"
    calibration: str = "MinMax"
    activations: str = "QUInt8"
    weights: str = "QInt8"
    per_channel: bool = True
    reduce_range: bool = False


def recipes(vnni: bool) -> list[Recipe]:
    """What is worth trying on a processor with or without VNNI."""
    methods = ("MinMax", "Percentile", "Entropy")
    found = [Recipe(calibration=method, reduce_range=not vnni) for method in methods]
    found.append(Recipe(format="QOperator", reduce_range=not vnni))
    if vnni:
        found.append(Recipe(activations="QInt8"))
    else:
        found.append(Recipe())
        found.append(Recipe(weights="QUInt8", per_channel=False))
    return found


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images one by one."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._feed: Iterator[NDArray[np.float32]] = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._feed, None)
        return None if image is None else {"images": image}


def quantised(plain: Plain, images: Images, recipe: Recipe) -> onnx.ModelProto:
    """The plain network with integers of 8 bits, its batch left open."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        source, ready, target = (Path(folder) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(plain.onnx(BATCH_AXIS), source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            _Calibration(images.calibration),
            quant_format=QuantFormat[recipe.format],
            calibrate_method=CalibrationMethod[recipe.calibration],
            activation_type=QuantType[recipe.activations],
            weight_type=QuantType[recipe.weights],
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
            extra_options={"WeightSymmetric": recipe.weights == "QInt8"},
        )
        return onnx.load(target)


def with_batch(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """A copy of a model with an open batch, for batches of this size."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = count
    return fixed


def session_of(model: onnx.ModelProto, threads: int) -> Any:
    """A session with every optimisation of the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ort_fp32(plain: Plain, images: Images, *, threads: int, cores: int) -> Contender:
    """The plain network in ONNX Runtime at full precision."""
    model = plain.onnx(BATCH_AXIS)
    return _contender(model, "fp32", plain, images, threads, cores, {})


def ort_int8(
    plain: Plain, images: Images, recipe: Recipe, *, threads: int, cores: int
) -> Contender:
    """The plain network in ONNX Runtime, quantised in one way."""
    model = quantised(plain, images, recipe)
    return _contender(model, "int8", plain, images, threads, cores, asdict(recipe))


def _contender(
    model: onnx.ModelProto,
    precision: Precision,
    plain: Plain,
    images: Images,
    threads: int,
    cores: int,
    settings: dict[str, Any],
) -> Contender:
    call = session_of(with_batch(model, 1), threads).run

    def run(image: NDArray[np.float32]) -> Logits:
        logits: Logits = call(None, {"images": image})[0]
        return logits

    label = " ".join(str(value) for value in settings.values())
    return Contender(
        name=f"onnxruntime {precision} {plain.name} {label}".strip(),
        engine="onnxruntime",
        precision=precision,
        role="backbone",
        network=plain.name,
        inputs=images.singles,
        run=run,
        loads=lambda: _loads(model, images, cores),
        settings={
            "threads": threads,
            "graph_optimisation": "all",
            "input": "normalised floats",
            **settings,
        },
    )


def _loads(model: onnx.ModelProto, images: Images, cores: int) -> list[Load]:
    batch = images.floats[:BATCH]
    together = session_of(with_batch(model, len(batch)), cores)

    def as_batch() -> int:
        together.run(None, {"images": batch})
        return len(batch)

    loads = [Load(f"batch of {len(batch)}, {cores} threads", as_batch)]
    if cores > 1:
        loads.append(Load(f"{cores} sessions of one thread", _apart(model, images, cores)))
    return loads


def _apart(model: onnx.ModelProto, images: Images, cores: int) -> Callable[[], int]:
    single = with_batch(model, 1)
    sessions = [session_of(single, 1) for _ in range(cores)]
    share = images.singles[:BATCH]
    pool = ThreadPoolExecutor(cores)

    def work(session: Any) -> int:
        for image in share:
            session.run(None, {"images": image})
        return len(share)

    return lambda: sum(pool.map(work, sessions))
