"""OpenVINO as a peer."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray

from fracskip.bench.contender import Contender, Load, Logits, Precision
from fracskip.bench.onnx_engine import BATCH, BATCH_AXIS
from fracskip.bench.quiet import quietly
from fracskip.bench.subject import Images, Plain


def ov_float(
    plain: Plain, images: Images, *, precision: Precision, threads: int, cores: int
) -> Contender:
    """The plain network at full precision or, where the processor has it, in bfloat16."""
    model = _read(plain.onnx(BATCH_AXIS))
    kind = "bf16" if precision == "bf16" else "f32"
    return _contender(model, precision, plain, images, threads, cores, {}, kind)


def ov_from_onnx(
    model: onnx.ModelProto,
    plain: Plain,
    images: Images,
    settings: dict[str, Any],
    *,
    threads: int,
    cores: int,
) -> Contender:
    """A network that was quantised as an ONNX model with QDQ pairs."""
    settings = {"quantised_by": "onnxruntime", **settings}
    return _contender(_read(model), "int8", plain, images, threads, cores, settings)


def has_nncf() -> bool:
    """Whether OpenVINO's own tool for quantisation is installed."""
    return importlib.util.find_spec("nncf") is not None


def ov_nncf(plain: Plain, images: Images, preset: str, *, threads: int, cores: int) -> Contender:
    """A network that NNCF quantised after training.

    Args:
        plain: The network.
        images: Calibration and test images.
        preset: 'PERFORMANCE' (symmetric activations) or 'MIXED' (asymmetric where signed).
        threads: For one image.
        cores: Threads for throughput.
    """
    with quietly():
        import nncf

        nncf.set_log_level(logging.ERROR)
        model = _read(plain.onnx(BATCH_AXIS))
        rows = np.split(images.calibration, len(images.calibration))
        model = nncf.quantize(
            model,
            nncf.Dataset(rows),
            preset=getattr(nncf.QuantizationPreset, preset),
            subset_size=len(rows),
        )
    settings = {"quantised_by": "nncf", "preset": preset}
    return _contender(model, "int8", plain, images, threads, cores, settings)


def _read(model: onnx.ModelProto) -> Any:
    return ov.Core().read_model(model.SerializeToString())


def _compiled(model: Any, batch: int, config: dict[str, Any]) -> Any:
    twin = model.clone()
    shape = twin.inputs[0].get_partial_shape()
    shape[0] = batch
    twin.reshape(shape)
    return ov.Core().compile_model(twin, "CPU", config)


def _contender(
    model: Any,
    precision: Precision,
    plain: Plain,
    images: Images,
    threads: int,
    cores: int,
    settings: dict[str, Any],
    kind: str = "f32",
) -> Contender:
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": kind,
    }
    request = _compiled(model, 1, config).create_infer_request()
    # One input tensor that is written to, one output tensor that is read: nothing is allocated.
    given = np.zeros(images.singles[0].shape, np.float32)
    request.set_input_tensor(ov.Tensor(given, shared_memory=True))
    answer: Logits = request.get_output_tensor().data

    def run(image: NDArray[np.float32]) -> Logits:
        given[...] = image
        request.infer()
        return answer

    label = " ".join(str(value) for value in settings.values())
    return Contender(
        name=f"openvino {precision} {plain.name} {label}".strip(),
        engine="openvino",
        precision=precision,
        role="backbone",
        network=plain.name,
        inputs=images.singles,
        run=run,
        loads=lambda: _loads(model, images, cores, kind),
        settings={**config, "input": "normalised floats", **settings},
    )


def _loads(model: Any, images: Images, cores: int, kind: str) -> list[Load]:
    config = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": kind}
    batch = images.floats[:BATCH]
    together = _compiled(
        model, len(batch), {**config, "PERFORMANCE_HINT": "LATENCY"}
    ).create_infer_request()
    together.set_input_tensor(ov.Tensor(np.array(batch)))

    def as_batch() -> int:
        together.infer()
        return len(batch)

    streams = _compiled(model, 1, {**config, "PERFORMANCE_HINT": "THROUGHPUT"})
    queue = ov.AsyncInferQueue(streams)
    share = [ov.Tensor(np.array(image)) for image in images.singles[:BATCH]]

    def in_streams() -> int:
        for image in share:
            queue.start_async({0: image})
        queue.wait_all()
        return len(share)

    return [
        Load(f"batch of {len(batch)}, {cores} threads", as_batch),
        Load(f"{len(queue)} requests at once (THROUGHPUT)", in_streams),
    ]
