"""Our own engine: a bundle by its gates, and with every block forced to one option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.bench.contender import Contender, Load, Logits, Precision
from fracskip.bench.subject import Images
from fracskip.errors import MissingExtraError
from fracskip.operating import Prediction
from fracskip.options import Option
from fracskip.runtime import InferenceSession

BATCH = 256
OurEngine = Literal["native", "portable"]


def native_contenders(
    bundle: str | Path, images: Images, *, engine: OurEngine, threads: int, cores: int
) -> list[Contender]:
    """The dynamic network by its gates, then forced to each option from the top down.

    Args:
        bundle: A .fsk file.
        images: What it classifies: pixels, which it normalises itself.
        engine: 'native' or 'portable'.
        threads: Of a session for one image.
        cores: Threads for throughput.

    Raises:
        BundleError: if the file is no sound bundle.
        MissingExtraError: if the engine is not there.
    """
    session = InferenceSession(bundle, threads=threads, engine=engine)
    if session.engine != engine:
        raise MissingExtraError(f"this installation has no {engine} engine")
    whole = InferenceSession(bundle, threads=cores, engine=engine)
    pixels = images.test.images
    inputs = [pixels[row : row + 1] for row in range(len(pixels))]

    def contender(option: Option | None) -> Contender:
        decisions = None if option is None else session.forced(option, 1)
        run, own = _runner(session, decisions)
        return Contender(
            name=f"{engine} {'by its gates' if option is None else _words(option)}",
            engine=engine,
            precision="mixed" if option is None else _precision(option),
            role="dynamic" if option is None else "forced",
            network="by its gates" if option is None else _words(option),
            inputs=inputs,
            run=run,
            loads=lambda: [_load(whole, pixels, option)],
            settings={"isa": session.isa, "threads": threads, "input": "uint8 pixels"},
            own_latency_us=own,
            option=None if option is None else option.label,
            cp=lambda: _cp(whole, pixels) if option is None else option.relative_cost,
        )

    forced = list(reversed(list(session.options))) if session.plan.gate is not None else []
    return [contender(None), *(contender(option) for option in forced)]


def _runner(
    session: InferenceSession, decisions: NDArray[np.uint8] | None
) -> tuple[Callable[[Any], Logits], Callable[[], float]]:
    last: list[Prediction[NDArray[Any]]] = []

    def run(image: NDArray[np.uint8]) -> Logits:
        result = session.run(image, decisions=decisions)
        last[:] = [result]
        return result.logits

    def own() -> float:
        assert last[0].latency_us is not None  # a session measures it
        return float(last[0].latency_us[0])

    return run, own


def _load(session: InferenceSession, pixels: NDArray[np.uint8], option: Option | None) -> Load:
    batch = np.ascontiguousarray(pixels[:BATCH])
    decisions = None if option is None else session.forced(option, len(batch))

    def run() -> int:
        session.run(batch, decisions=decisions)
        return len(batch)

    return Load(f"batch of {len(batch)}, {session.threads} threads", run)


def _cp(session: InferenceSession, pixels: NDArray[np.uint8]) -> float:
    return session.cost(session.run(pixels)).cp


def _precision(option: Option) -> Precision:
    if option.is_skip:
        return "mixed"
    return "int8" if option.is_quantised and option.bits <= 8 else "fp32"


def _words(option: Option) -> str:
    if option.is_skip:
        return "all skipped"
    return "all in full" if option.is_full else f"all at {option.bits} bits"
