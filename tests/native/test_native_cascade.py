"""Several networks in one engine: what its reader refuses, and how chains of them answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fracskip.data.resampling import resize
from fracskip.runtime.bundle import parse_bundle
from fracskip.runtime.portable import PortableEngine
from support.cascades import LARGE, SMALL, cascade, other_size, random_cascade
from support.chains import ChainPredictions, run_chain
from support.hostile_files import Parts, damaged_bundle
from support.random_bundle import random_bundle

native = pytest.importorskip("fracskip.runtime._native", reason="built without a C++ compiler")

SMALLER = random_bundle(1, **SMALL)
LARGER = random_bundle(2, **LARGE)
RESIZED = other_size(LARGER, (9, 8))
BUNDLES = [SMALLER, LARGER, RESIZED]
GOOD = cascade(BUNDLES, [None, None, 1])
COUNT, CLASSES = 9, 5
DRAW = np.random.default_rng(0)
PEAKS = np.linspace(40, 255, COUNT)[:, None, None, None]
IMAGES = (DRAW.random((COUNT, 11, 10, 3)) * PEAKS).astype(np.uint8)
SCORES = ("probability", "margin", "entropy")


# -- the reader -----------------------------------------------------------------------------------


def copy_of(parts: Parts) -> Parts:
    return Parts.of(parts.bundle())


def put(**values: Any) -> Callable[[Parts], object]:
    return lambda parts: parts.plan.update(values)


def network(index: int, **values: Any) -> Callable[[Parts], object]:
    return lambda parts: parts.plan["networks"][index].update(values)


def image(index: int, **values: Any) -> Callable[[Parts], object]:
    return lambda parts: parts.plan["networks"][index]["image"].update(values)


def without(key: str) -> Callable[[Parts], object]:
    return lambda parts: parts.plan.pop(key)


def one_channel(parts: Parts) -> None:
    """The second and third network become one of its own, for grey images."""
    grey = cascade([SMALLER, random_bundle(2, **{**LARGE, "channels": 1})])
    parts.plan, parts.tensors = grey.plan, grey.tensors


def lend_to_all(parts: Parts) -> None:
    """All tensors of the third network are its own, and it claims to share."""
    apart = cascade(BUNDLES)
    apart.plan["weights_of"] = [None, None, 1]
    parts.plan, parts.tensors = apart.plan, apart.tensors


def five(parts: Parts) -> None:
    parts.plan["networks"] *= 2
    parts.plan["weights_of"] *= 2


FAULTS: dict[str, tuple[Callable[[Parts], object], str]] = {
    "schema": (put(schema="fracskip.ensemble"), "this is 'fracskip.ensemble' version 1"),
    "schema's type": (put(schema=1), "schema must be a string"),
    "no version": (without("version"), "cascade of another version"),
    "version": (put(version=2), "'fracskip.cascade' version 1: export it again"),
    "version as text": (put(version="1"), "version must be an integer"),
    "a key more": (put(more=1), "unknown member 'more'"),
    **{
        f"no {key}": (without(key), f"lacks '{key}'")
        for key in ("networks", "weights_of", "members", "score", "images", "points")
    },
    "networks' type": (put(networks={}), "networks must be a list"),
    "no network": (put(networks=[], weights_of=[]), "networks must be 1 to 4"),
    "five networks": (five, "networks must be 1 to 4"),
    "no plan": (put(networks=[1, 1, 1]), r"networks\[0\]"),
    "a cascade within": (network(1, schema="fracskip.cascade"), "this is 'fracskip.cascade'"),
    "a plan's version": (network(2, version=2), "version 2; this fracskip reads"),
    "a plan's key": (network(2, more=1), r"networks\[2\] has an unknown member 'more'"),
    "a plan's value": (network(2, stream="int4"), r"networks\[2\].stream is neither"),
    "sharing": (put(weights_of=[None, None]), "weights_of must have one entry for each network"),
    "the first shares": (put(weights_of=[0, None, 1]), r"weights_of\[0\] must be null"),
    "its own": (put(weights_of=[None, None, 2]), r"weights_of\[2\] must be an integer from 0 to 1"),
    "lender's type": (put(weights_of=[None, None, "1"]), r"weights_of\[2\] must be an integer"),
    "nothing shared": (lend_to_all, "network 2 shares no tensor with network 1"),
    "another lends": (put(weights_of=[None, None, 0]), "network 2: tensor .* is F32 .*, the plan"),
    "nobody lends": (
        put(weights_of=[None] * 3),
        "network 2: tensor parts.0.full.0.weight is missing",
    ),
    "missing": (
        lambda parts: parts.tensors.pop("1.parts.0.full.0.bias"),
        "network 1: tensor parts.0.full.0.bias is missing",
    ),
    "surplus": (
        lambda parts: parts.tensors.update({"2.more": ("F32", [1], bytes(4))}),
        "no place for tensor '2.more'",
    ),
    "surplus that is lent": (
        lambda parts: parts.tensors.update({"3.more": ("F32", [1], bytes(4))}),
        "no place for tensor '3.more'",
    ),
    "a name without a network": (
        lambda parts: parts.tensors.update({"more": ("F32", [1], bytes(4))}),
        "no place for tensor 'more'",
    ),
    "a value": (
        lambda parts: parts.values("0.parts.0.full.0.bias", [float("nan")]),
        "network 0: tensor parts.0.full.0.bias has values that are NaN",
    ),
    "class names": (network(1, class_names=list("abcde")), "must be those of the first network"),
    "channels": (one_channel, "networks must take images of the same channels"),
    "the largest image": (image(0, size=[12, 9]), "one of the largest image"),
    "a wide image": (image(0, size=[8, 12]), "one of the largest image"),
    "score": (put(score="luck"), "score is unknown"),
    "score's type": (put(score=None), "score must be a string"),
    "images": (put(images=-1), "images must be an integer"),
    "images as float": (put(images=1.5), "images must be an integer"),
    "members": (put(members={}), "members must be a list"),
    "a member": (put(members=[1]), r"members\[0\] must be an object"),
    "points": (put(points=None), "points must be a list"),
    "a point": (put(points=[{}, []]), r"points\[1\] must be an object"),
}


def test_the_cascade_that_the_faults_are_made_in() -> None:
    engine = native.Engine(copy_of(GOOD).bundle())
    assert (engine.networks, engine.classes) == (3, CLASSES)
    assert [engine.gated_blocks(k) for k in range(3)] == [1, 1, 1]
    assert [engine.options(k) for k in range(3)] == [4, 2, 2]
    assert {index for index, *_ in engine.kernels()} == {0, 1, 2}
    assert not any(name.startswith("2.parts") and name.endswith(".weight") for name in GOOD.tensors)


@pytest.mark.parametrize("name", FAULTS)
def test_native_reader_refuses_cascades(name: str) -> None:
    change, message = FAULTS[name]
    parts = copy_of(GOOD)
    change(parts)
    with pytest.raises(native.BundleError, match=message):
        native.Engine(parts.bundle())


def test_native_reader_refuses_images_too_large_to_be_resized() -> None:
    """Weights of a resize would leave 64 bits; of one size they need none."""
    wide = {**SMALL, "widths": (1,), "channels": 1, "options": (8,)}
    bundles = [random_bundle(1, **{**wide, "image": (8, size)}) for size in (16385, 9)]
    with pytest.raises(
        native.BundleError, match="up to 16384 pixels on a side, where sizes differ"
    ):
        native.Engine(cascade(bundles).bundle())
    assert native.Engine(cascade([bundles[0]] * 2).bundle()).networks == 2


def test_native_reader_says_something_of_damaged_cascades() -> None:
    draw, said = random.Random(5), []
    for _ in range(150):
        try:
            native.Engine(damaged_bundle(draw, GOOD.bundle()))
        except native.BundleError as error:
            said.append(len(str(error)))
    assert len(said) > 50
    assert 0 < min(said) <= max(said) <= 2000


# -- chains ---------------------------------------------------------------------------------------


def engine_of(kind: str, bundles: list[bytes], weights_of: Any = None) -> Any:
    if kind == "portable":
        return PortableEngine([parse_bundle(data) for data in bundles], 1)
    return native.Engine(cascade(bundles, weights_of).bundle(), isa=kind, threads=2)


def alone(kind: str, data: bytes, images: NDArray[np.uint8], multiplier: float) -> ChainPredictions:
    """One network by itself, of images at its size."""
    size = parse_bundle(data).plan.image.size
    engine = engine_of(kind, [data]) if kind == "portable" else native.Engine(data, isa=kind)
    return run_chain(engine, resize(images, size), multipliers=[multiplier])


KINDS = ("portable", *native.isas())
CHAINS: dict[str, tuple[int, ...]] = {
    "one": (2,),
    "up": (0, 1),
    "down": (1, 0),
    "twice": (0, 0, 1),
    "sizes": (2, 2, 1, 1),
    "back": (2, 1, 2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_their_members_runs(kind: str, name: str) -> None:
    """Answers, decisions and scores are those of members alone, to the bit in the native engine."""
    chain = CHAINS[name]
    engine = engine_of(kind, BUNDLES, [None, None, 1])
    multipliers = [30.0 if position % 2 == 0 else -30.0 for position in range(len(chain))]
    members = [
        alone(kind, BUNDLES[network], IMAGES, multiplier)
        for network, multiplier in zip(chain, multipliers, strict=True)
    ]
    # The median of each member's scores, so that some images go on and some stay.
    thresholds = [np.full(COUNT, np.median(m.scores[0]), np.float32) for m in members[:-1]]
    found = run_chain(engine, IMAGES, chain, multipliers=multipliers, thresholds=thresholds)
    seen = np.ones(COUNT, bool)
    for position, member in enumerate(members):
        exact = {"rtol": 1e-3, "atol": 1e-3} if kind == "portable" else {"rtol": 0, "atol": 0}
        sure, decisions = found.scores[position], found.decisions[position]
        np.testing.assert_allclose(sure[seen], member.scores[0][seen], **exact)
        assert np.isnan(sure[~seen]).all()
        assert (decisions[seen] == member.decisions[0][seen]).all()
        assert (decisions[~seen] == 255).all()
        last = position + 1 == len(chain)
        stays = seen if last else seen & ~(sure < thresholds[position])
        assert (found.answered[stays] == position).all()
        np.testing.assert_allclose(found.logits[stays], member.logits[stays], **exact)
        seen = seen & ~stays
    assert len(chain) == 1 or len(set(found.answered.tolist())) > 1, "the case shows nothing"
    assert (found.latency_us > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_for_networks_of_the_same_images(kind: str) -> None:
    floats = np.zeros((COUNT, 11, 10, 3), np.float32)
    same = engine_of(kind, [LARGER, random_bundle(7, **LARGE)])
    assert np.isfinite(run_chain(same, floats, (0, 1), thresholds=[2.0]).logits).all()
    parts = Parts.of(LARGER)
    parts.plan["image"]["mean"] = [0.1, 0.2, 0.3]
    for other in (RESIZED, parts.bundle()):
        with pytest.raises(ValueError, match="images must be uint8: this bundle's networks differ"):
            run_chain(engine_of(kind, [LARGER, other]), floats)


def test_several_networks_are_forced_and_timed_one_by_one() -> None:
    engine = native.Engine(GOOD.bundle())
    forced = np.ones((COUNT, 1), np.uint8)
    for network in (1, 2):
        assert (run_chain(engine, IMAGES, (network,), forced=forced).decisions[0] == 1).all()
    with pytest.raises(ValueError, match="forced holds 3, the network has 2 options"):
        run_chain(engine, IMAGES, (2,), forced=forced * np.uint8(3))
    times = np.empty((COUNT, 1), np.float32)
    with pytest.raises(ValueError, match="gate_us is of the gates of one network"):
        run_chain(engine, IMAGES, (1, 2), thresholds=[0.5], gate_us=times)


def test_threads_share_a_cascade() -> None:
    wanted = run_chain(native.Engine(random_cascade(3)), IMAGES, (0, 2, 1), thresholds=[0.6, 0.6])
    engine = native.Engine(random_cascade(3), threads=4)
    for _ in range(20):
        found = run_chain(engine, IMAGES, (0, 2, 1), thresholds=[0.6, 0.6])
        assert (found.logits == wanted.logits).all()
        assert (found.answered == wanted.answered).all()


# -- scores ---------------------------------------------------------------------------------------


def exact_score(logits: NDArray[np.float32], temperature: float, score: str) -> NDArray[np.float64]:
    """By their definitions, in float64."""
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    if score == "probability":
        return p.max(1)
    if score == "margin":
        ordered = np.sort(p, 1)
        return ordered[:, -1] - ordered[:, -2]
    return 1 + (p * np.log(np.maximum(p, 1e-300))).sum(1) / np.log(p.shape[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("score", SCORES)
def test_scores(score: str, temperature: float, kind: str) -> None:
    engine = engine_of(kind, [LARGER])
    found = run_chain(engine, IMAGES, score=score, temperatures=[temperature])
    wanted = exact_score(found.logits, temperature, score)
    np.testing.assert_allclose(found.scores[0], wanted, rtol=2e-6, atol=1e-6)
    assert np.ptp(found.scores[0]) > 1e-4, "the case shows nothing"


def heads(logits: list[float]) -> bytes:
    """A network that always gives these logits."""
    parts = Parts.of(random_bundle(1, **{**SMALL, "classes": len(logits)}))
    head = f"parts.{len(parts.network['parts']) - 1}.full.1"
    kind, shape, data = parts.tensors[f"{head}.weight"]
    parts.tensors[f"{head}.weight"] = kind, shape, bytes(len(data))
    parts.values(f"{head}.bias", logits)
    return parts.bundle()


@pytest.mark.parametrize("kind", ["portable", "scalar"])
@pytest.mark.parametrize(
    ("logits", "temperature", "wanted"),
    [
        ([3.0], 1.0, (1.0, 1.0, 1.0)),  # of one class
        ([1.5, 1.5], 2.0, (0.5, 0.0, 0.0)),
        ([-2.0, -2.0, -2.0, -2.0], 1.0, (0.25, 0.0, 0.0)),
        ([0.0, 3e38, -3e38], 1.0, (1.0, 1.0, 1.0)),  # a difference that float32 does not hold
        ([0.0, 90.0, 0.0], 0.1, (1.0, 1.0, 1.0)),
        ([5e-40, 0.0], 1e-42, (1.0, 1.0, 1.0)),  # a temperature below the normal numbers
    ],
)
def test_scores_at_their_ends(
    logits: list[float], temperature: float, wanted: tuple[float, ...], kind: str
) -> None:
    engine = engine_of(kind, [heads(logits)])
    for score, value in zip(SCORES, wanted, strict=True):
        found = run_chain(
            engine, resize(IMAGES[:1], (8, 8)), score=score, temperatures=[temperature]
        )
        assert found.logits[0].tolist() == [np.float32(logit) for logit in logits]
        assert found.scores[0].tolist() == [value]
