"""What the native reader refuses (docs/bundle.md), fault by fault; the Python reader agrees."""

from __future__ import annotations

import copy
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fracskip.errors import BundleError
from fracskip.runtime.bundle import parse_bundle
from support.hostile_files import (
    HOSTILE_BUNDLES,
    Parts,
    damaged_bundle,
    many_convolutions,
    many_pools,
)
from support.random_bundle import random_bundle

native = pytest.importorskip("fracskip.runtime._native", reason="built without a C++ compiler")

GOOD = random_bundle(2, image=(8, 8), widths=(4, 8), depth=2)
NARROW = random_bundle(2, image=(8, 8), widths=(4, 8), depth=2, first=8, ends=8)
# Its parts: stem, block0, gated block1 to block3, of which block2 projects, head.
WEIGHT, BIAS, INPUT = (f"parts.2.4.0.{kind}" for kind in ("weight", "bias", "input"))
LOGITS = "parts.5.full.1.bias"
POOL = {"op": "pool", "in": [1], "kind": "max", "kernel": [3, 3], "stride": [1, 1]}


def part(parts: Parts, index: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = parts.network["parts"][index]
    return found


def conv(parts: Parts, index: int = 2, position: int = 0) -> dict[str, Any]:
    geometry: dict[str, Any] = part(parts, index)["branch"][position]
    return geometry


def strided_identity(parts: Parts) -> None:
    for position in range(2):
        conv(parts, 2, position)["stride"] = [2, 1]


def one_row_more(parts: Parts) -> None:
    parts.tensors[LOGITS] = ("F32", [6], bytes(24))


def of_version(version: int) -> Callable[[Parts], object]:
    return lambda parts: parts.plan.update(version=version)


def level(name: str, value: float) -> Callable[[Parts], object]:
    """Another step or zero."""
    return lambda parts: parts.tensors.update({name: ("F32", [1], struct.pack("<f", value))})


def points(**fields: Any) -> Callable[[Parts], object]:
    """Other operating points."""
    return lambda parts: parts.plan["operating_points"].update(fields)


def cascade(*rows: list[float]) -> Callable[[Parts], object]:
    """A cascade on a curve."""
    return points(cascade=list(rows), multiplier_curve=[[0.01, 1.0], [0.5, -1.0]])


LOW, HIGH = [0.05, 0.02, 0.1, 0.5], [0.3, 0.1, 0.5, 0.9]

AGAIN = "export its checkpoint again, with fracskip export CHECKPOINT --to FILE.fsk"
FAULTS: dict[str, tuple[Callable[[Parts], object], str]] = {
    "a fraction": (
        lambda p: p.plan["image"].update(channels=3.0),
        "image.channels must be an integer from 1 to 65535",
    ),
    "a version's fraction": (lambda p: p.plan.update(version=4.0), "version must be an integer"),
    "a truth": (
        lambda p: conv(p).update(groups=True),
        "groups must be an integer from 1 to 65535",
    ),
    "schema": (
        lambda p: p.plan.update(schema="other"),
        f"'other' version 4; this fracskip reads 'fracskip.bundle' versions 3 to 4: {AGAIN}",
    ),
    "version 2": (of_version(2), f"version 2; this fracskip reads .* versions 3 to 4: {AGAIN}"),
    "version 5": (of_version(5), f"version 5; this fracskip reads .* versions 3 to 4: {AGAIN}"),
    "version 3, four paddings": (of_version(3), "padding must be two integers"),
    "version 4, two paddings": (lambda p: conv(p).update(padding=[1, 1]), "must be four integers"),
    "six paddings": (lambda p: conv(p).update(padding=[1] * 6), "must be four integers"),
    "resize": (lambda p: p.plan["image"].update(resize=3), "resize must be an integer from"),
    "version as float": (lambda p: p.plan.update(version=4.0), "integer"),
    "unknown key": (lambda p: p.plan.update(more=1), "unknown member 'more'"),
    "lacking key": (lambda p: p.plan.pop("stream"), "lacks 'stream'"),
    "stream": (lambda p: p.plan.update(stream="int4"), "stream"),
    "unknown option": (lambda p: p.plan.update(options=["skip", "1"]), "unknown option '1'"),
    "options descend": (lambda p: p.plan.update(options=["8", "4"]), "ascend"),
    "no options": (lambda p: p.plan.update(options=[]), "empty"),
    "only skip": (lambda p: p.plan.update(options=["skip"]), "'skip' alone"),
    "no gate": (lambda p: p.plan.update(gate=None), "null if and only if"),
    "gate's kind": (lambda p: p.plan["gate"].update(kind="oracle"), "unknown"),
    "gate's width": (lambda p: p.plan["gate"].update(width=0), "integer from 1"),
    "gate's output": (lambda p: p.plan["gate"].update(output="harm"), "unknown"),
    "gate's old key": (lambda p: p.plan["gate"].update(lean=1.0), "unknown member 'lean'"),
    "no operating points": (lambda p: p.plan.pop("operating_points"), "lacks 'operating_points'"),
    "no multiplier": (lambda p: p.plan["operating_points"].pop("multiplier"), "lacks 'multiplier'"),
    "a huge multiplier": (points(multiplier=1e39), "from -1e38 to 1e38"),
    "a curve of one": (points(multiplier_curve=[[0.1, 0.0]]), "two points"),
    "a curve of numbers": (points(multiplier_curve=[[0.1], [0.2]]), "a cost and a multiplier"),
    "a curve of equal costs": (points(multiplier_curve=[[0.1, 1], [0.1, 0]]), "must cost more"),
    "a curve that ascends": (points(multiplier_curve=[[0.1, 0], [0.2, 1]]), "smaller multiplier"),
    "a cascade of one": (cascade(LOW), "two rows"),
    "a cascade without a curve": (points(cascade=[LOW, HIGH]), "and a multiplier curve"),
    "a cascade that descends": (cascade(HIGH, LOW), "ascend"),
    "a cascade of pairs": (cascade(LOW[:2], HIGH[:2]), "a threshold"),
    "a member off the curve": (cascade(LOW, [0.3, 0.1, 0.6, 0.9]), "on the multiplier curve"),
    "a target out of reach": (cascade([0.15, 0.02, 0.1, 0.5], HIGH), "among the cascade's budgets"),
    "no target": (
        lambda p: (cascade(LOW, HIGH)(p), points(target=None)(p)),
        "among the cascade's budgets",
    ),
    "the dearer member first": (cascade([0.05, 0.2, 0.1, 0.5], HIGH), "the dearer one second"),
    "no probability": (cascade([0.05, 0.02, 0.1, 1.5], HIGH), r"\[0, 1\]"),
    "target": (points(target=1.5), r"\(0, 1\]"),
    "class names": (lambda p: p.plan["class_names"].pop(), "one name for each class"),
    "std": (lambda p: p.plan["image"].update(std=[0.2, 0, 0.2]), "above zero"),
    "too few means": (lambda p: p.plan["image"].update(mean=[0.5]), "each channel"),
    "no parts": (lambda p: p.network.update(parts=[]), "empty"),
    "too many parts": (
        lambda p: p.network.update(parts=p.network["parts"][:1] * 4097),
        "4,096",
    ),
    "equal names": (lambda p: part(p).update(name="block2"), "another gated part"),
    "no name": (lambda p: part(p).update(name=""), "has no name"),
    "empty branch": (lambda p: part(p).update(branch=[]), "empty branch"),
    "two options ungated": (lambda p: part(p, 1).update(options=["4", "8"]), "one option"),
    "skip ungated": (lambda p: part(p, 1).update(options=["skip", "8"]), "one option"),
    "only skip ungated": (lambda p: part(p, 1).update(options=["skip"]), "'skip' alone"),
    "gated differently": (lambda p: part(p).update(options=["4", "8"]), "network's options"),
    "no residual": (lambda p: part(p).update(residual=False), "no residual sum"),
    "identity projected": (lambda p: part(p, 3).update(skip_is_identity=True), "no identity"),
    "option of no shortcut": (lambda p: part(p).update(shortcut_option="8"), "if and only if"),
    "shortcut of no option": (lambda p: part(p, 3).update(shortcut_option=None), "if and only if"),
    "shortcut skipped": (lambda p: part(p, 3).update(shortcut_option="skip"), "'skip'"),
    "gated first": (lambda p: p.network["parts"].pop(0), "neither gated nor residual"),
    "gated last": (lambda p: p.network["parts"].pop(), "neither gated nor residual"),
    "residual first": (lambda p: part(p, 0).update(residual=True), "neither gated nor residual"),
    "residual last": (lambda p: part(p, 5).update(residual=True), "neither gated nor residual"),
    "activation of a sum": (
        lambda p: part(p)["after"][0].update(act="relu6"),
        "empty or 'relu' in an 8-bit stream",
    ),
    "pool after a sum": (
        lambda p: part(p).update(
            after=[{**POOL, "in": [0], "padding": [1] * 4, "count_padding": False}]
        ),
        "other than activations",
    ),
    "unknown operation": (lambda p: conv(p).update(op="sum"), "unknown operation 'sum'"),
    "unknown activation": (lambda p: conv(p).update(act="tanh"), "unknown activation 'tanh'"),
    "value that is not there": (lambda p: conv(p).update({"in": [1]}), "integer from 0 to 0"),
    "value that nothing uses": (lambda p: conv(p, 2, 1).update({"in": [0]}), "nothing uses"),
    "groups": (lambda p: conv(p).update(groups=3), "do not divide"),
    "pool's padding": (
        lambda p: part(p, 0)["branch"].append(
            {**POOL, "padding": [1, 1, 1, 2], "count_padding": False}
        ),
        "half of its kernel",
    ),
    "counted padding": (
        lambda p: part(p, 0)["branch"].append({**POOL, "padding": [1] * 4, "count_padding": True}),
        "counts padding",
    ),
    "channels": (lambda p: conv(p).update(channels=[5, 4]), "takes 5 channels and gets 4"),
    "kernel": (lambda p: conv(p).update(kernel=[99, 3]), "larger than its input"),
    "stride": (lambda p: conv(p).update(stride=[0, 1]), "integer from 1"),
    "negative padding": (lambda p: conv(p).update(padding=[1, 1, -1, 1]), "integer from 0"),
    "strided identity": (strided_identity, "shortcut that gives"),
    "huge image": (lambda p: p.plan["image"].update(size=[60000, 60000]), "1 GiB"),
    "huge padding": (lambda p: conv(p).update(padding=[0, 0, 60000, 60000]), "1 GiB"),
    "one wide border": (
        lambda p: conv(p).update(kernel=[1, 3], padding=[0, 0, 0, 30000]),
        "1 GiB",
    ),
    "logits": (lambda p: conv(p, 5, 1).update(channels=[8, 6]), "not 5 logits"),
    "accumulators": (
        lambda p: (
            [conv(p, 1, j).update(kernel=[151, 151], padding=[75] * 4) for j in range(2)]
            and part(p, 1).update(options=["8"])
        ),
        "32 bits",
    ),
    "bits of the stem": (lambda p: p.plan["cost"].update(stem_bits=33), "from 1 to 32"),
    "bits of the head": (lambda p: p.plan["cost"].update(head_bits=0), "from 1 to 32"),
    "missing tensor": (lambda p: p.tensors.pop(BIAS), f"{BIAS} is missing"),
    "surplus tensor": (
        lambda p: p.tensors.update({"more": ("F32", [1], bytes(4))}),
        "no place for tensor 'more'",
    ),
    "shape": (one_row_more, rf"{LOGITS} is F32 \[6\], the plan needs F32 \[5\]"),
    "type": (
        lambda p: p.tensors.update({WEIGHT: ("F32", [4, 3, 3, 4], bytes(576))}),
        "the plan needs I8",
    ),
    "grid": (lambda p: p.values(WEIGHT, [8], "i1"), "has the weight 8, 4 bits hold up to 7"),
    "grid below": (lambda p: p.values("parts.2.8.0.weight", [-128], "i1"), "-128"),
    "NaN": (lambda p: p.values(BIAS, [float("nan")]), "NaN or infinite"),
    "infinite scale": (lambda p: p.values("parts.2.4.0.scale", [float("inf")]), "infinite"),
    "zero step": (lambda p: p.values("parts.3.step", [0.0]), "not above zero"),
    "no step": (lambda p: p.tensors.pop("parts.3.step"), "parts.3.step is missing"),
    "step of the last": (level("parts.5.step", 1.0), "no place for tensor"),
    "step that is not handed on": (level("parts.2.step", 0.5), "is not that of the part before"),
    "half a level": (level("parts.2.4.0.zero", 0.5), "is no level of 4 bits"),
    "level above": (level("parts.3.zero", 256.0), "is no level of 8 bits"),
    "level that a clamp can't be": (level("parts.3.zero", 3.0), "is not 0, and a clamp"),
    "negative input": (lambda p: p.values(INPUT, [-1.0]), "not above zero"),
}
# Limits that keep an engine's memory and its integers bounded; Python has no such trouble. And to
# Python 1.0 is 1.
NATIVE_ONLY = {"huge padding", "one wide border", "accumulators", "version as float"}


def test_native_reader_takes_the_bundle_that_the_faults_are_made_in() -> None:
    assert native.Engine(Parts.of(GOOD).bundle()).classes == 5
    assert native.Engine(GOOD).gated_blocks(0) == 3
    parse_bundle(Parts.of(GOOD).bundle())
    twice = Parts.of(GOOD)
    cascade(LOW, HIGH)(twice)
    assert native.Engine(twice.bundle()).gated_blocks(0) == 3
    assert parse_bundle(twice.bundle()).plan.budgets == (0.05, 0.3)


@pytest.mark.parametrize("name", FAULTS)
def test_native_reader_refuses(name: str) -> None:
    change, message = FAULTS[name]
    parts = Parts.of(GOOD)
    change(parts)
    with pytest.raises(native.BundleError, match=message):
        native.Engine(parts.bundle())
    if name not in NATIVE_ONLY:
        with pytest.raises(BundleError):
            parse_bundle(parts.bundle())


def edited(old: bytes, new: bytes) -> bytes:
    """The good bundle with its header's text changed, at the header's new length."""
    size = int.from_bytes(GOOD[:8], "little")
    head = GOOD[8 : 8 + size]
    assert old in head
    head = head.replace(old, new, 1)
    return len(head).to_bytes(8, "little") + head + GOOD[8 + size :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"\x80\x02}q\x00." * 4, "no safetensors file"),
        (GOOD[:100], "ends within its header"),
        (GOOD[:-1], "outside the file|bytes of"),
        (GOOD + b"\0", "bytes of"),
        (edited(b'"dtype":"I8"', b'"dtype":"I4"'), "dtype 'I4'"),
        (edited(b'"data_offsets":[0,', b'"data_offsets":[1,'), "size that does not fit"),
        (edited(b'"digest":', b'"other":'), "digest"),
        (edited(b'"fracskip":', b'"other":'), "without a plan"),
        (edited(b'{"__metadata__"', b'{"a":1,"a":1,"__metadata__"'), "key 'a' twice"),
        (edited(b'"__metadata__"', b'"\xff":0,"__metadata__"'), "invalid UTF-8"),
        (edited(b'"__metadata__"', b'"a":' + b"[" * 9999 + b',"__metadata__"'), "too deeply"),
        (edited(b'"__metadata__"', b'"a":01,"__metadata__"'), "expected"),
        (edited(b'"__metadata__"', b'"a":NaN,"__metadata__"'), "expected a value"),
        (edited(b'"__metadata__"', b'"a":"\\ud800","__metadata__"'), "surrogate"),
        (edited(b'"__metadata__"', b'"a":1e999,"__metadata__"'), "out of range"),
    ],
)
def test_native_reader_refuses_damaged_files(data: bytes, message: str) -> None:
    with pytest.raises(native.BundleError, match=message):
        native.Engine(data)
    with pytest.raises(BundleError):
        parse_bundle(data)


def test_native_reader_says_the_same_of_random_damage() -> None:
    """With a digest that fits again, both readers take the same bundles."""
    draw = np.random.default_rng(0)
    taken = 0
    for _ in range(150):
        parts = Parts.of(GOOD)
        name = list(parts.tensors)[draw.integers(len(parts.tensors))]
        kind, shape, data = copy.deepcopy(parts.tensors[name])
        spoilt = bytearray(data)
        spoilt[draw.integers(len(spoilt))] = draw.integers(256)
        parts.tensors[name] = kind, shape, bytes(spoilt)
        verdicts = []
        for read, error in ((native.Engine, native.BundleError), (parse_bundle, BundleError)):
            try:
                read(parts.bundle())
                verdicts.append(True)
            except error:
                verdicts.append(False)
        assert verdicts[0] == verdicts[1], name
        taken += verdicts[0]
    assert 0 < taken < 150


# -- no more work than the file has bytes ---------------------------------------------------------

MOST_SECONDS = 60  # far more than any takes, far less than what grows faster than the file


@pytest.mark.parametrize("name", HOSTILE_BUNDLES)
def test_native_reader_refuses_hostile_bundles_soon(name: str) -> None:
    data = HOSTILE_BUNDLES[name](random.Random(0), 1_000_000)
    began = time.process_time()
    with pytest.raises(native.BundleError) as caught:
        native.Engine(data)
    assert time.process_time() - began < MOST_SECONDS
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize("data", [many_pools(4094), many_convolutions(300)], ids=["pools", "convs"])
def test_long_chains_are_planned_soon(data: bytes) -> None:
    """What lies between two convolutions is followed once, not once for each operation."""
    began = time.process_time()
    assert native.Engine(data).gated_blocks(0) == 1
    assert time.process_time() - began < MOST_SECONDS


def test_both_readers_say_the_same_of_damage_with_a_digest_that_fits() -> None:
    """What Python takes, the engine takes, or says that it is beyond its own limits."""
    draw, said = random.Random(3), []
    for data in (GOOD, NARROW, many_convolutions(3)):
        for _ in range(100):
            damaged = damaged_bundle(draw, data)
            try:
                parse_bundle(damaged)
            except BundleError:
                continue  # this comes first in a session
            try:
                native.Engine(damaged)
            except native.BundleError as error:
                said.append(str(error))
    assert all("integer" in line for line in said), said
