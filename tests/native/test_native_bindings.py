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

from support.chains import arguments, run_chain
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


IMAGES = np.random.default_rng(0).integers(0, 256, (B, 8, 10, 3), np.uint8)
FLOATS = (IMAGES / np.float32(255)).astype(np.float32)


def test_bindings_describe_the_engine(engine: Any) -> None:
    assert (engine.networks, engine.gated_blocks(0), engine.options(0)) == (1, L, 3)
    assert (engine.classes, engine.threads) == (N, 2)
    for ask in (engine.gated_blocks, engine.options):
        for network in (-1, 1):
            with pytest.raises(IndexError, match="the engine has 1 networks"):
                ask(network)
    assert engine.isa in native.isas()
    assert native.isas()[0] == "scalar"
    blocks = {(network, block, option) for network, block, option, _ in engine.kernels()}
    assert {(0, "block1", "skip"), (0, "block1", "4"), (0, "block1", "8")} <= blocks
    for isa in native.isas():
        assert native.Engine(random_bundle(1, **PLAIN), isa=isa).isa == isa


@pytest.mark.parametrize("images", [IMAGES, FLOATS], ids=["uint8", "float32"])
def test_bindings_fill_every_output(engine: Any, images: Any) -> None:
    forced = np.array([[0], [1], [2]], np.uint8)
    found = run_chain(engine, images, forced=forced)
    assert np.isfinite(found.logits).all()
    assert (found.decisions[0] == forced).all()
    assert (found.latency_us > 0).all()
    assert (found.scores[0] > 1 / N).all()
    assert (found.answered == 0).all()
    assert run_chain(engine, images[:0]).logits.shape == (0, N)


def test_bindings_time_gates(engine: Any) -> None:
    gate_us = np.full((B, L), np.nan, np.float32)
    found = run_chain(engine, IMAGES, gate_us=gate_us)
    assert (gate_us > 0).all()
    assert (gate_us.sum(1) < found.latency_us).all()
    run_chain(engine, IMAGES, (0, 0), thresholds=[2.0], gate_us=gate_us)
    assert (gate_us > 0).all()  # of both members
    run_chain(engine, IMAGES, forced=found.decisions[0], gate_us=gate_us)
    assert (gate_us == 0).all()  # nobody was asked


def read_only() -> Any:
    array = np.empty((B, N), np.float32)
    array.flags.writeable = False
    return array


def spoilt(value: float) -> Any:
    images = FLOATS.copy()
    images[1, 2, 3, 0] = value
    return images


def floats(value: float = 0.5, count: int = B) -> Any:
    return np.full(count, value, np.float32)


# Arguments that differ from sound ones, those of a chain of two where there are thresholds.
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "float64": ({"images": IMAGES / 255.0}, TypeError, "uint8, or float32"),
    "a list": ({"images": [1]}, TypeError, "incompatible"),
    "one image": ({"images": IMAGES[0]}, ValueError, "shape"),
    "channels first": (
        {"images": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))},
        ValueError,
        r"has shape \(3, 3, 8, 10\), it must be \(3, 8, 10, 3\)",
    ),
    "strided": ({"images": IMAGES[:, :, ::-1]}, ValueError, "C-contiguous"),
    "NaN": ({"images": spoilt(float("nan"))}, ValueError, "not finite"),
    "infinite": ({"images": spoilt(float("-inf"))}, ValueError, "not finite"),
    "short logits": ({"logits": np.empty((2, N), "f4")}, ValueError, "logits has shape"),
    "logits' type": ({"logits": np.empty((B, N))}, TypeError, "logits must be float32"),
    "logits' order": (
        {"logits": np.asfortranarray(np.empty((B, N), "f4"))},
        ValueError,
        "C-contiguous",
    ),
    "read-only": ({"logits": read_only()}, TypeError, "incompatible"),
    "latency": ({"latency_us": floats(0, 2)}, ValueError, "latency_us has shape"),
    "answered": ({"answered": np.zeros(B, bool)}, TypeError, "answered must be uint8"),
    "forced": (
        {"forced": np.full((B, L), 3, np.uint8)},
        ValueError,
        "forced holds 3, the network has 3 options",
    ),
    "forced's shape": ({"forced": np.zeros((B, 2), "u1")}, ValueError, "forced has shape"),
    "gate_us": ({"gate_us": floats()}, ValueError, "gate_us has shape"),
    "no networks": ({"networks": []}, ValueError, "networks must name 1 to 4 members"),
    "five": ({"networks": [0] * 5}, ValueError, "networks must name 1 to 4 members"),
    "another network": ({"networks": [1]}, ValueError, "networks holds 1, the engine has 1"),
    "a network before": ({"networks": [-1]}, ValueError, "networks holds -1, the engine has 1"),
    "no decisions": ({"decisions": []}, ValueError, "decisions has 0 entries, .* needs 1"),
    "decisions": (
        {"decisions": [np.zeros((B, 2), "u1")]},
        ValueError,
        r"decisions\[0\] has shape",
    ),
    "multipliers": (
        {"multipliers": [floats(np.nan)]},
        ValueError,
        "multipliers hold values that are not finite",
    ),
    "multipliers' shape": (
        {"multipliers": [floats(0, B + 1)]},
        ValueError,
        r"multipliers\[0\] has shape",
    ),
    "more multipliers": ({"multipliers": [None] * 2}, ValueError, "multipliers has 2 entries"),
    "budgets": ({"budgets": [floats()]}, ValueError, "network 0 takes no budgets"),
    "more budgets": ({"budgets": []}, ValueError, "budgets has 0 entries, this chain needs 1"),
    "no temperature": ({"temperatures": []}, ValueError, "temperatures has 0 entries"),
    "temperature 0": ({"temperatures": [0.0]}, ValueError, "temperatures must be above zero"),
    "temperature NaN": ({"temperatures": [np.nan]}, ValueError, "temperatures must be above zero"),
    "cold": ({"temperatures": [-1.0]}, ValueError, "temperatures must be above zero and finite"),
    "hot": ({"temperatures": [np.inf]}, ValueError, "temperatures must be above zero and finite"),
    "score": (
        {"score": "luck"},
        ValueError,
        "unknown score 'luck': give one of 'probability', 'margin', 'entropy'",
    ),
    "scores": ({"scores": [floats()] * 2}, ValueError, "scores has 2 entries"),
    "scores' type": ({"scores": [np.zeros(B)]}, TypeError, r"scores\[0\] must be float32"),
    "a threshold": ({"thresholds": [floats()]}, ValueError, "thresholds has 1 entries, .* needs 0"),
    "no thresholds": ({"networks": [0, 0]}, ValueError, "thresholds has 0 entries, .* needs 1"),
    "thresholds": (
        {"networks": [0, 0], "thresholds": [floats(np.nan)]},
        ValueError,
        "thresholds hold values that are not finite",
    ),
    "thresholds' shape": (
        {"networks": [0, 0], "thresholds": [floats(1, B + 1)]},
        ValueError,
        r"thresholds\[0\] has shape",
    ),
    "forced and escalated": (
        {"networks": [0, 0], "thresholds": [floats()], "forced": np.zeros((B, L), "u1")},
        ValueError,
        "by one member",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bindings_refuse(engine: Any, name: str) -> None:
    change, error, message = REFUSED[name]
    members = max(1, len(change.get("networks", [0])))
    given = {"images": IMAGES, **arguments(engine, B, [0] * members)}
    if members == 1 or "thresholds" in change:
        thresholds = [floats()] * (members - 1)
        engine.run(**{**given, "thresholds": thresholds})  # sound without the change
    with pytest.raises(error, match=message):
        engine.run(**{**given, **change})


def test_bindings_escalate(engine: Any) -> None:
    """Impossible to be sure, impossible not to be, and one of each."""
    thresholds = [np.array([1.1, 0.0, 1.1], np.float32)]
    found = run_chain(engine, IMAGES, (0, 0), multipliers=[50, -50], thresholds=thresholds)
    assert found.answered.tolist() == [1, 0, 1]
    assert found.decisions[0].tolist() == [[0], [0], [0]]
    assert found.decisions[1].tolist() == [[2], [255], [2]]  # only what is executed
    assert np.isnan(found.scores[1]).tolist() == [False, True, False]
    for position, (multiplier, rows) in enumerate(((50, [1]), (-50, [0, 2]))):
        alone = run_chain(engine, IMAGES, multipliers=[multiplier])
        assert (alone.logits[rows] == found.logits[rows]).all()
        assert (alone.scores[0][rows] == found.scores[position][rows]).all()


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_bindings_check_budgets(budget: float) -> None:
    engine = native.Engine(random_bundle(1, budget_input=True, **PLAIN))
    run_chain(engine, IMAGES, budgets=[0.2])
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        run_chain(engine, IMAGES, budgets=[budget])
    with pytest.raises(ValueError, match="network 0 needs budgets, one for each image"):
        run_chain(engine, IMAGES)
    run_chain(engine, IMAGES, forced=np.zeros((B, L), np.uint8))


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

    wanted = run_chain(engine, images)
    each = float(wanted.latency_us.min())
    many = np.repeat(images[:1], int(60e6 / each) + 1, axis=0)
    stopped = arguments(engine, len(many))
    begin = time.perf_counter()
    stop_after(0.1)
    with pytest.raises(StopError):
        engine.run(many, **stopped)
    assert time.perf_counter() - begin < 15
    done = np.isfinite(stopped["latency_us"])
    assert done[0]
    assert not done[-1]
    assert (stopped["logits"][done] == wanted.logits[0]).all()
    assert (run_chain(engine, images).logits == wanted.logits).all()

    # Signals are the main thread's: another one goes on to its end.
    count = int(0.3e6 / each) + 1
    other = arguments(engine, count)
    ended = threading.Event()

    def work() -> None:
        engine.run(many[:count], **other)
        ended.set()

    threading.Thread(target=work).start()
    stop_after(0.1)
    with pytest.raises(StopError):
        ended.wait(60)
    assert ended.wait(60)
    assert (other["logits"] == wanted.logits[0]).all()


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
