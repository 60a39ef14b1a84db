"""What the extension module checks before it lets the engine run, and that nothing leaks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.native_build import compiler
from support.random_bundle import random_bundle

if compiler() is None:
    native = pytest.importorskip("fracskip.runtime._native", reason="built without a C++ compiler")
else:
    # Where a compiler is, an installation without the engine is a failed build.
    from fracskip.runtime import _native as native

PLAIN: dict[str, Any] = {"image": (8, 10), "widths": (4,), "options": ("skip", 4, 8)}
B, L, N = 3, 1, 5


@pytest.fixture(scope="module")
def engine() -> Any:
    return native.Engine(random_bundle(1, **PLAIN), threads=2)


def outputs(count: int = B) -> list[Any]:
    return [
        np.empty((count, N), np.float32),
        np.full((count, L), 255, np.uint8),
        np.empty(count, np.float32),
    ]


IMAGES = np.random.default_rng(0).integers(0, 256, (B, 8, 10, 3), np.uint8)
FLOATS = (IMAGES / np.float32(255)).astype(np.float32)


def test_bindings_describe_the_engine(engine: Any) -> None:
    assert (engine.gated_blocks, engine.classes, engine.options, engine.threads) == (L, N, 3, 2)
    assert engine.isa in native.isas()
    assert native.isas()[0] == "scalar"
    blocks = {(block, option) for block, option, _ in engine.kernels()}
    assert {("block1", "skip"), ("block1", "4"), ("block1", "8")} <= blocks
    for isa in native.isas():
        assert native.Engine(random_bundle(1, **PLAIN), isa=isa).isa == isa


@pytest.mark.parametrize("images", [IMAGES, FLOATS], ids=["uint8", "float32"])
def test_bindings_fill_every_output(engine: Any, images: Any) -> None:
    forced = np.array([[0], [1], [2]], np.uint8)
    logits, decisions, latency_us = outputs()
    engine.run(images, logits, decisions, latency_us, forced)
    assert np.isfinite(logits).all()
    assert (decisions == forced).all()
    assert (latency_us > 0).all()
    engine.run(images[:0], *outputs(0))


def test_bindings_time_gates(engine: Any) -> None:
    gate_us = np.full((B, L), np.nan, np.float32)
    logits, decisions, latency_us = outputs()
    engine.run(IMAGES, logits, decisions, latency_us, gate_us=gate_us)
    assert (gate_us > 0).all()
    assert (gate_us.sum(1) < latency_us).all()
    engine.run(IMAGES, logits, decisions, latency_us, decisions.copy(), gate_us=gate_us)
    assert (gate_us == 0).all()  # nobody was asked


def read_only() -> Any:
    array = np.empty((B, N), np.float32)
    array.flags.writeable = False
    return array


def spoilt(value: float) -> Any:
    images = FLOATS.copy()
    images[1, 2, 3, 0] = value
    return images


def second_member(**changes: Any) -> dict[str, Any]:
    arrays = {"thresholds": np.ones(B, np.float32), "second_decisions": outputs()[1]}
    return {**arrays, "escalated": np.zeros(B, np.uint8), **changes}


Call = Callable[[Any], object]
REFUSED: dict[str, tuple[Call, type[Exception], str]] = {
    "float64": (lambda e: e.run(IMAGES / 255.0, *outputs()), TypeError, "uint8, or float32"),
    "a list": (lambda e: e.run([1], *outputs()), TypeError, "incompatible"),
    "one image": (lambda e: e.run(IMAGES[0], *outputs()), ValueError, "shape"),
    "channels first": (
        lambda e: e.run(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)), *outputs()),
        ValueError,
        r"has shape \(3, 3, 8, 10\), it must be \(3, 8, 10, 3\)",
    ),
    "strided": (lambda e: e.run(IMAGES[:, :, ::-1], *outputs()), ValueError, "C-contiguous"),
    "NaN": (lambda e: e.run(spoilt(float("nan")), *outputs()), ValueError, "not finite"),
    "infinite": (lambda e: e.run(spoilt(float("-inf")), *outputs()), ValueError, "not finite"),
    "short logits": (
        lambda e: e.run(IMAGES, outputs(2)[0], *outputs()[1:]),
        ValueError,
        "logits has shape",
    ),
    "logits' type": (
        lambda e: e.run(IMAGES, outputs()[0].astype(np.float64), *outputs()[1:]),
        TypeError,
        "logits must be float32",
    ),
    "logits' order": (
        lambda e: e.run(IMAGES, np.asfortranarray(outputs()[0]), *outputs()[1:]),
        ValueError,
        "C-contiguous",
    ),
    "read-only": (lambda e: e.run(IMAGES, read_only(), *outputs()[1:]), TypeError, "incompatible"),
    "forced": (
        lambda e: e.run(IMAGES, *outputs(), np.full((B, L), 3, np.uint8)),
        ValueError,
        "forced holds 3, the network has 3 options",
    ),
    "forced's shape": (
        lambda e: e.run(IMAGES, *outputs(), np.zeros((B, 2), np.uint8)),
        ValueError,
        "forced has shape",
    ),
    "gate_us": (
        lambda e: e.run(IMAGES, *outputs(), gate_us=np.empty(B, np.float32)),
        ValueError,
        "gate_us has shape",
    ),
    "multipliers": (
        lambda e: e.run(IMAGES, *outputs(), multipliers=np.full(B, np.nan, np.float32)),
        ValueError,
        "multipliers hold values that are not finite",
    ),
    "multipliers' shape": (
        lambda e: e.run(IMAGES, *outputs(), multipliers=np.zeros(B + 1, np.float32)),
        ValueError,
        "multipliers has shape",
    ),
    "thresholds alone": (
        lambda e: e.run(IMAGES, *outputs(), thresholds=np.ones(B, np.float32)),
        ValueError,
        "need second_decisions and escalated",
    ),
    "second multipliers alone": (
        lambda e: e.run(IMAGES, *outputs(), second_multipliers=np.zeros(B, np.float32)),
        ValueError,
        "a second member needs thresholds",
    ),
    "escalated alone": (
        lambda e: e.run(IMAGES, *outputs(), escalated=np.zeros(B, np.uint8)),
        ValueError,
        "these need thresholds",
    ),
    "second decisions alone": (
        lambda e: e.run(IMAGES, *outputs(), second_decisions=outputs()[1]),
        ValueError,
        "these need thresholds",
    ),
    "thresholds": (
        lambda e: e.run(IMAGES, *outputs(), **second_member(thresholds=np.full(B, np.nan, "f4"))),
        ValueError,
        "thresholds hold values that are not finite",
    ),
    "thresholds' shape": (
        lambda e: e.run(IMAGES, *outputs(), **second_member(thresholds=np.ones(B + 1, "f4"))),
        ValueError,
        "thresholds has shape",
    ),
    "escalated's type": (
        lambda e: e.run(IMAGES, *outputs(), **second_member(escalated=np.zeros(B, bool))),
        TypeError,
        "escalated must be uint8",
    ),
    "second multipliers": (
        lambda e: e.run(
            IMAGES, *outputs(), **second_member(second_multipliers=np.full(B, np.inf, "f4"))
        ),
        ValueError,
        "multipliers hold values that are not finite",
    ),
    "second budgets": (
        lambda e: e.run(IMAGES, *outputs(), **second_member(second_budgets=np.ones(B, "f4"))),
        ValueError,
        "second_budgets are for networks that take budgets",
    ),
    "forced and escalated": (
        lambda e: e.run(IMAGES, *outputs(), np.zeros((B, L), np.uint8), **second_member()),
        ValueError,
        "by one member",
    ),
    "budgets": (
        lambda e: e.run(IMAGES, *outputs(), None, np.ones(B, np.float32)),
        ValueError,
        "takes no budgets",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bindings_refuse(engine: Any, name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(engine)


def test_bindings_escalate(engine: Any) -> None:
    """Impossible to be sure, impossible not to be, and one of each."""
    logits, decisions, latency_us = outputs()
    multipliers = {"multipliers": np.full(B, 50, "f4"), "second_multipliers": np.full(B, -50, "f4")}
    more = second_member(thresholds=np.array([1.1, 0.0, 1.1], np.float32), **multipliers)
    engine.run(IMAGES, logits, decisions, latency_us, **more)
    assert more["escalated"].tolist() == [1, 0, 1]
    assert decisions.tolist() == [[0], [0], [0]]
    assert more["second_decisions"].tolist() == [[2], [255], [2]]  # only what is executed
    for multiplier, rows in ((50, [1]), (-50, [0, 2])):
        alone, *rest = outputs()
        engine.run(IMAGES, alone, *rest, multipliers=np.full(B, multiplier, np.float32))
        assert (alone[rows] == logits[rows]).all()


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_bindings_check_budgets(budget: float) -> None:
    engine = native.Engine(random_bundle(1, budget_input=True, **PLAIN))
    engine.run(IMAGES, *outputs(), budgets=np.full(B, 0.2, np.float32))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        engine.run(IMAGES, *outputs(), budgets=np.full(B, budget, np.float32))
    with pytest.raises(ValueError, match="needs budgets"):
        engine.run(IMAGES, *outputs())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"isa": "sse2"}, "unknown instruction set 'sse2'"),
        ({"threads": 0}, "threads must be 1 to 256"),
        ({"threads": 257}, "threads must be 1 to 256"),
    ],
)
def test_bindings_check_how_an_engine_is_made(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.Engine(random_bundle(1, **PLAIN), **keywords)
    with pytest.raises(TypeError):
        native.Engine("a path")


class StopError(Exception):
    pass


@pytest.fixture
def stop_after() -> Iterator[Callable[[float], None]]:
    """Has a signal raise `StopError` on the main thread after so many seconds."""

    def stop(*_: object) -> None:
        raise StopError

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)  # type: ignore[func-returns-value]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer")


@needs_signals
@pytest.mark.parametrize("threads", [1, 2])
def test_bindings_stop_for_signals(stop_after: Callable[[float], None], threads: int) -> None:
    """Within a run that would take a minute; then the engine does what it did before."""
    shape = {"image": (32, 32), "widths": (64,), "options": ("full",)}
    engine = native.Engine(random_bundle(1, **shape), isa="scalar", threads=threads)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)

    def out(count: int) -> list[Any]:
        times = np.full(count, np.nan, np.float32)
        return [np.empty((count, N), np.float32), np.empty((count, 1), np.uint8), times]

    wanted, _, each = found = out(4)
    engine.run(images, *found)
    many = np.repeat(images[:1], int(60e6 / each.min()) + 1, axis=0)
    stopped = out(len(many))
    begin = time.perf_counter()
    stop_after(0.1)
    with pytest.raises(StopError):
        engine.run(many, *stopped)
    assert time.perf_counter() - begin < 15
    done = np.isfinite(stopped[2])
    assert done[0]
    assert not done[-1]
    assert (stopped[0][done] == wanted[0]).all()
    logits, *rest = out(4)
    engine.run(images, logits, *rest)
    assert (logits == wanted).all()

    # Signals are the main thread's: another one goes on to its end.
    count = int(0.3e6 / each.min()) + 1
    other = out(count)
    done = threading.Event()

    def work() -> None:
        engine.run(many[:count], *other)
        done.set()

    threading.Thread(target=work).start()
    stop_after(0.1)
    with pytest.raises(StopError):
        done.wait(60)
    assert done.wait(60)
    assert (other[0] == wanted[0]).all()


@needs_signals
def test_bindings_stop_opening_for_signals(stop_after: Callable[[float], None]) -> None:
    data = random_bundle(1, widths=(256,), depth=12)
    times = []
    for seconds in (0.0, 0.01):
        begin = time.perf_counter()
        stop_after(seconds)  # 0 is never
        with pytest.raises(StopError) if seconds else nullcontext():
            native.Engine(data, isa="scalar")
        times.append(time.perf_counter() - begin)
    assert times[1] < times[0] / 2, times


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_bindings_a_thousand_sessions_leave_nothing_behind(tmp_path: Path) -> None:
    from fracskip.runtime.session import InferenceSession

    path = tmp_path / "net.fsk"
    path.write_bytes(random_bundle(1, **PLAIN))
    before = 0
    for index in range(1000):
        if index == 100:
            before = resident_bytes()
        InferenceSession(path, engine="native", threads=1 + index % 2).run(IMAGES)
    assert resident_bytes() - before < 5e6
