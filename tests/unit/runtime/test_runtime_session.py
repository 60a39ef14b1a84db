"""Sessions: which engine runs, what they refuse, and what they say."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fracskip.cost import account
from fracskip.errors import BundleError, ConfigError, DataError, FracskipError, MissingExtraError
from fracskip.operating import Prediction
from fracskip.runtime import InferenceSession, engines
from fracskip.runtime.bundle import encode_bundle, parse_bundle
from fracskip.runtime.elements import PlannedPoints
from support.random_bundle import random_bundle, random_images

Make = Callable[..., InferenceSession]
NO_TARGET = PlannedPoints(target=None, multiplier=0.0, multiplier_curve=(), cascade=())
ENGINES: tuple[Any, ...] = ("portable", *(["native"] if engines.instruction_sets() else []))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(engine: Any = "portable", seed: int = 1, **keywords: Any) -> InferenceSession:
        path = tmp_path / "x.fsk"
        path.write_bytes(random_bundle(seed, **keywords))
        return InferenceSession(path, engine=engine)

    return make


# -- what it says ---------------------------------------------------------------------------------


def test_a_session_knows_its_network(make: Make) -> None:
    found = make()
    assert found.options.labels == ("skip", "4", "8", "full")
    assert found.class_names == tuple(f"class {index}" for index in range(5))
    assert found.image.size == (16, 16)
    assert len(found.profile.gated) == 3
    assert (found.engine, found.isa, found.threads) == ("portable", "torch", 1)
    assert found.digest.startswith("sha256:")
    assert found.kernels()[:5] == [
        ("stem", "full", ["torch_float32"]),
        ("block0", "full", ["torch_float32"] * 2),
        ("block1", "skip", []),
        ("block1", "4", ["torch_int4"] * 2),
        ("block1", "8", ["torch_int8"] * 2),
    ]


def test_a_result(make: Make) -> None:
    found = make(seed=4)
    images = random_images(found.plan, 9)
    result = found.run(images)
    assert isinstance(result, Prediction)
    assert (result.logits.dtype, result.logits.shape) == (np.float32, (9, 5))
    assert (result.decisions.dtype, result.decisions.shape) == (np.uint8, (9, 3))
    assert (result.latency_us.dtype, result.latency_us.shape) == (np.float32, (9,))
    assert (result.latency_us > 0).all()
    np.testing.assert_array_equal(result.predicted, result.logits.argmax(1))
    assert len(np.unique(result.decisions)) > 1
    again = found.run(images)
    np.testing.assert_array_equal(again.logits, result.logits)
    np.testing.assert_array_equal(again.decisions, result.decisions)
    cost = found.cost(result)
    assert cost.cp == account(result.decisions, found.options, found.profile).cp
    with pytest.raises(AttributeError):
        result.logits = images  # type: ignore[misc]


def test_views_and_other_layouts(make: Make) -> None:
    found = make()
    images = random_images(found.plan, 6)
    wanted = found.run(images).logits
    np.testing.assert_array_equal(found.run(images[::-1]).logits[::-1], wanted)
    reversed_twice = np.ascontiguousarray(images[::-1])[::-1]
    np.testing.assert_array_equal(found.run(reversed_twice).logits, wanted)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(found.run(planes).logits, wanted)
    images.flags.writeable = False
    np.testing.assert_array_equal(found.run(images).logits, wanted)


def test_no_images_give_no_answers(make: Make) -> None:
    found = make()
    result = found.run(random_images(found.plan, 3)[:0])
    assert result.logits.shape == (0, 5)
    assert result.decisions.shape == (0, 3)
    assert result.latency_us.shape == (0,)


def test_forced_decisions(make: Make) -> None:
    found = make()
    images = random_images(found.plan, 4)
    for label in ("skip", 4, "8", "full"):
        forced = found.forced(label, 4)
        result = found.run(images, decisions=forced)
        np.testing.assert_array_equal(result.decisions, forced)
    lists = [[0, 1, 2], [3, 2, 1], [0, 0, 0], [1, 1, 1]]
    assert found.run(images, decisions=lists).decisions.tolist() == lists
    with pytest.raises(ConfigError, match="option '3' is not in this set"):
        found.forced(3, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_clock_around_gates(make: Make, engine: str) -> None:
    found = make(engine=engine)
    images = random_images(found.plan, 4)
    assert found.run(images).gate_us is None
    result = found.run(images, time_gates=True)
    assert result.gate_us is not None
    assert (result.gate_us.dtype, result.gate_us.shape) == (np.float32, (4, 3))
    assert (result.gate_us > 0).all()
    assert (result.gate_us.sum(1) < result.latency_us).all()
    np.testing.assert_array_equal(result.decisions, found.run(images).decisions)
    forced = found.run(images, decisions=result.decisions, time_gates=True)
    assert forced.gate_us is not None
    assert not forced.gate_us.any()


def test_the_budget_is_the_networks_target_unless_given(make: Make) -> None:
    found = make(budget_input=True, depth=3, seed=6)
    images = random_images(found.plan, 8)
    default = found.run(images)
    np.testing.assert_array_equal(found.run(images, budget=0.1).logits, default.logits)
    np.testing.assert_array_equal(found.run(images, budget=[0.1] * 8).logits, default.logits)
    np.testing.assert_array_equal(
        found.run(images, budget=np.array([0.1])).decisions, default.decisions
    )
    assert (found.run(images, budget=1).decisions != default.decisions).any()


def changed(data: bytes, plan: dict[str, Any] | None = None, **tensors: float) -> bytes:
    """A bundle with other values in its plan, and tensors of one value."""
    bundle = parse_bundle(data)
    values = {**bundle.tensors}
    for name, value in tensors.items():
        values[name] = np.full_like(values[name], value)
    return encode_bundle(bundle.plan.model_copy(update=plan or {}), values)[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_forced_decisions_need_no_budget(tmp_path: Path, engine: Any) -> None:
    path = tmp_path / "x.fsk"
    path.write_bytes(changed(random_bundle(6, budget_input=True), {"operating_points": NO_TARGET}))
    found = InferenceSession(path, engine=engine)
    images = random_images(found.plan, 3)
    with pytest.raises(ConfigError, match="this network needs a budget"):
        found.run(images)
    decisions = found.forced("8", 3)
    wanted = found.run(images, budget=0.5, decisions=decisions).logits
    np.testing.assert_array_equal(found.run(images, decisions=decisions).logits, wanted)


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_that_are_no_numbers(tmp_path: Path, engine: Any) -> None:
    path = tmp_path / "x.fsk"
    head = {"parts.5.full.1.weight": 3e38}
    path.write_bytes(changed(random_bundle(1), **head))
    found = InferenceSession(path, engine=engine)
    images = random_images(found.plan, 3)
    with pytest.raises(BundleError) as caught:
        found.run(images)
    assert str(caught.value) == (
        f"logits of 3 of 3 images are NaN or infinite, the first is image 0: weights of {path} "
        "are too large for float32; export a network that evaluates well"
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_opens_the_bundle_again(
    make: Make, engine: Any, again: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    found = InferenceSession("x.fsk", threads=2, engine=engine)
    monkeypatch.chdir("/")
    other = again(found)
    network = "options=('skip', '4', '8', 'full'), image=(16, 16, 3)"
    executed = f"threads=2, engine={engine!r}, isa={found.isa!r}"
    said = f"InferenceSession('{tmp_path}/x.fsk', {network}, {executed})"
    assert repr(other) == repr(found) == said
    images = random_images(found.plan, 4)
    np.testing.assert_array_equal(other.run(images).logits, found.run(images).logits)
    make(seed=2)
    with pytest.raises(BundleError, match=r"x.fsk has changed since the session was pickled or"):
        again(found)
    (tmp_path / "x.fsk").unlink()
    with pytest.raises(BundleError, match=r"x.fsk does not exist"):
        again(found)


FORKED = """
import os, signal, sys
import numpy as np
from fracskip.runtime import InferenceSession
path, engine = sys.argv[1:]
def logits(session):
    shape = (8, *session.image.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return session.run(images).logits
session = InferenceSession(path, threads=2, engine=engine)
wanted = logits(session)
if not (child := os.fork()):
    signal.alarm(30)
    same = np.allclose(logits(session), wanted, atol=1e-4)
    fresh = InferenceSession(path, threads=2, engine=engine)
    os._exit(0 if same and np.allclose(logits(fresh), wanted, atol=1e-4) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_sessions_in_a_process_that_was_forked(make: Make, engine: str, tmp_path: Path) -> None:
    """torch's threads do not come along; the portable engine does without them."""
    make()
    words = [sys.executable, "-c", FORKED, str(tmp_path / "x.fsk"), engine]
    found = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "2"}, timeout=120)
    assert found.returncode == 0


# -- what it refuses ------------------------------------------------------------------------------

SHAPE = (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[0]], "images of type list do not fit: a NumPy array (images, 16, 16, 3) is needed"),
        (None, "images of type NoneType do not fit"),
        (
            np.zeros(SHAPE, np.float64),
            "give uint8 pixels (0 to 255), or float32 that is normalised: ((pixels / 255",
        ),
        (np.zeros(SHAPE, np.int8), "images of type int8 do not fit"),
        (np.zeros(SHAPE, object), "images of type object do not fit"),
        (np.zeros((16, 16, 3), np.uint8), "a single image goes in as image[None]"),
        (np.zeros((2, 3, 16, 16), np.uint8), "images of shape (2, 3, 16, 16) do not fit: (images,"),
        (np.zeros((2, 16, 16, 1), np.uint8), "images of shape (2, 16, 16, 1) do not fit"),
        (np.zeros((2, 16, 17, 3), np.float32), "images of shape (2, 16, 17, 3) do not fit"),
        (np.zeros((), np.uint8), "images of shape () do not fit"),
        (
            np.full(SHAPE, np.nan, np.float32),
            "2 of 2 images hold NaN or infinite",
        ),
        (
            np.where(np.arange(768 * 2).reshape(SHAPE) == 1000, np.inf, 0).astype(np.float32),
            "1 of 2 images hold NaN or infinite values, the first is image 1: leave them out",
        ),
    ],
    ids=str,
)
def test_images_that_do_not_fit(make: Make, images: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        make().run(images)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([0, 0, 0], "decisions of shape (3,) and type int64 do not fit: integers of shape (2, 3)"),
        (np.zeros((2, 4), int), "integers of shape (2, 3) are needed"),
        (np.zeros((2, 3)), "type float64 do not fit"),
        ([["skip"] * 3] * 2, "do not fit: integers"),
        (np.full((2, 3), 4), "decisions from 4 to 4 do not fit: option indices from 0 to 3"),
        (np.full((2, 3), -1), "decisions from -1 to -1 do not fit"),
        (np.full((2, 3), 256), "decisions from 256 to 256 do not fit"),
    ],
    ids=str,
)
def test_decisions_that_do_not_fit(make: Make, decisions: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make().run(np.zeros(SHAPE, np.uint8), decisions=decisions)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget 0 is out of range: give a share in (0, 1]"),
        (1.5, "budget 1.5 is out of range"),
        (float("nan"), "budget nan is out of range"),
        ([0.1] * 3, "budget of shape (3,) does not fit: give one share, or one for each of the 2"),
        ("much", "budget 'much' is no number"),
    ],
)
def test_budgets_that_do_not_fit(make: Make, budget: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(budget_input=True).run(np.zeros(SHAPE, np.uint8), budget=budget)
    assert message in str(caught.value)


def test_a_budget_that_is_not_wanted(make: Make) -> None:
    with pytest.raises(ConfigError, match="takes none: leave budget out"):
        make().run(np.zeros(SHAPE, np.uint8), budget=0.1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "quantum"}, "engine 'quantum' is unknown: use one of auto, native, portable"),
        ({"threads": 0}, "threads 0 is out of range: use 1 to 256"),
        ({"threads": 257}, "threads 257 is out of range"),
        ({"threads": 1.5}, "threads 1.5 is no whole number"),
        ({"threads": True}, "threads True is no whole number"),
        ({"engine": "portable", "isa": "avx2"}, "isa 'avx2' is for the native engine"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, keywords: dict[str, Any], message: str) -> None:
    (tmp_path / "x.fsk").write_bytes(random_bundle(1))
    with pytest.raises(ConfigError) as caught:
        InferenceSession(tmp_path / "x.fsk", **keywords)
    assert message in str(caught.value)


def test_a_bad_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.fsk").write_bytes(random_bundle(1)[:-1])
    with pytest.raises(BundleError, match=r"x.fsk is damaged|x.fsk has a damaged header"):
        InferenceSession(tmp_path / "x.fsk")


# -- engines --------------------------------------------------------------------------------------


class FakeEngine:
    """Stands for the native engine."""

    def __init__(self, data: bytes, isa: str, threads: int) -> None:
        self.isa, self.threads = "avx2" if isa == "auto" else isa, threads
        self.calls: list[Any] = []

    def kernels(self) -> list[tuple[int, str, str, list[str]]]:
        return [(0, "block0", "full", ["fast"])]

    def run(self, images: Any, logits: Any, latency_us: Any, **asked: Any) -> None:
        self.calls.append((images, asked["forced"], *asked["budgets"], *asked["multipliers"]))
        logits[:], latency_us[:] = 1, 3
        asked["answered"][:] = 0
        for decisions in asked["decisions"]:
            decisions[:] = 2


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Engine=FakeEngine, isas=lambda: ["scalar", "avx2"])
    monkeypatch.setattr(engines, "native_module", lambda: module)


@pytest.mark.usefixtures("native")
def test_the_native_engine_is_taken_where_there_is_one(make: Make, tmp_path: Path) -> None:
    assert make("portable").engine == "portable"
    found = make("auto")
    assert (found.engine, found.isa, make("native").engine) == ("native", "avx2", "native")
    assert engines.instruction_sets() == ("scalar", "avx2")
    assert found.kernels() == [("block0", "full", ["fast"])]
    images = random_images(found.plan, 2)
    result = found.run(images.astype(np.float32), decisions=[[0, 1, 2]] * 2, normalised=True)
    assert (result.logits == 1).all()
    assert (result.decisions == 2).all()
    assert (result.latency_us == 3).all()
    ((seen, forced, budgets, multipliers),) = found._engine.calls  # type: ignore[attr-defined]
    assert seen.flags.c_contiguous
    assert (forced.dtype, forced.flags.c_contiguous) == (np.uint8, True)
    assert (budgets, multipliers) == (None, None)
    exact = InferenceSession(tmp_path / "x.fsk", threads=2, isa="scalar")
    assert (exact.isa, exact.threads) == ("scalar", 2)
    with pytest.raises(ConfigError, match=r"isa 'neon' is not of this processor: use one of auto"):
        InferenceSession(tmp_path / "x.fsk", isa="neon")


@pytest.mark.usefixtures("native")
def test_budgets_reach_the_engine_as_one_for_each_image(make: Make) -> None:
    found = make("auto", budget_input=True)
    images = random_images(found.plan, 2)
    found.run(images)
    found.run(images, budget=0.5)
    ((_, _, first, _), (_, _, second, _)) = found._engine.calls  # type: ignore[attr-defined]
    np.testing.assert_array_equal(first, np.float32([0.1, 0.1]))
    np.testing.assert_array_equal(second, np.float32([0.5, 0.5]))
    assert first.flags.c_contiguous
    assert first.dtype == np.float32


@pytest.mark.usefixtures("native")
def test_what_the_native_engine_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("blocks.0: doom")

    monkeypatch.setattr(FakeEngine, "__init__", refuse)
    (tmp_path / "x.fsk").write_bytes(random_bundle(1))
    with pytest.raises(BundleError, match=r"x.fsk: the native engine refuses it \(blocks.0: doom"):
        InferenceSession(tmp_path / "x.fsk")


def test_a_native_engine_that_was_not_built(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "native_module", lambda: None)
    assert engines.instruction_sets() == ()
    assert make("auto").engine == "portable"
    with pytest.raises(MissingExtraError, match=r"no native engine.*engine='portable'"):
        make("native")


def test_no_engine_at_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "native_module", lambda: None)
    monkeypatch.delitem(sys.modules, "fracskip.runtime.portable", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fracskip\[train\]'") as caught:
        make("auto")
    assert isinstance(caught.value, FracskipError)


def test_importing_it_loads_no_torch() -> None:
    script = """
import sys
from fracskip.runtime import InferenceSession
import fracskip.runtime.bundle, fracskip.evaluation
assert fracskip.InferenceSession is InferenceSession
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
