"""Traced networks on a stream of 8-bit integers: the native engine against the portable one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.native.test_native_reader import Parts, native
from tests.parity.test_parity_graph import (
    ISAS,
    Stemmed,
    Wide,
    assert_agree,
    drawn_paths,
    images_for,
    pixels,
)
from tests.support.residual_networks import (
    KINDS,
    Bottleneck,
    Inverted,
    Loose,
    Network,
    Twice,
    make_images,
    settled,
)

import fracskip
from fracskip.config import QuantConfig
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import BundleError
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import parse_bundle, read_bundle

OPTIONS = ("skip", 2, 3, 4, 6, 8, 16, "full")
Plan = dict[str, Any]
ALL = (*KINDS, Twice, Loose, Wide, Stemmed)

pytestmark = pytest.mark.skipif(not ISAS, reason="no native engine was built")


@functools.lru_cache
def network(kind: object) -> DynamicNetwork:
    torch.manual_seed(0)
    images = images_for(kind, 8)
    plain = kind() if kind in (Loose, Stemmed) else Network(kind)  # type: ignore[arg-type]
    net = fracskip.convert(
        settled(plain, images),
        OPTIONS,
        example_input=images[:1],
        calibration=[images],
        quant=QuantConfig(stream="int8"),
    )
    net.spec = net.spec.model_copy(
        update={"target": 0.1, "curve": ((0.01, -60.0), (0.1, 0.0), (0.5, 60.0))}
    )
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@functools.lru_cache
def bundle(kind: object, folder: Path) -> Path:
    path = folder / f"{kind.__name__}.fsk"  # type: ignore[attr-defined]
    fracskip.export(network(kind), path)
    return path


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ALL)
def test_every_option_gives_the_same(kind: object, isa: str, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, folder), engine="portable")
    native = InferenceSession(bundle(kind, folder), engine="native", isa=isa)
    images = pixels(kind)
    for option in portable.options.labels:
        decisions = portable.forced(option, len(images))
        barred = np.flatnonzero(portable.plan.unskippable)
        decisions[:, barred] = np.maximum(decisions[:, barred], 1)
        wanted = portable.run(images, decisions=decisions)
        found = native.run(images, decisions=decisions)
        if kind is Bottleneck and option in ("skip", "2", "3", "4", "6", "8"):
            # Convolutions, sums and clamps alone: the same integers all the way to the head.
            np.testing.assert_array_equal(found.logits, wanted.logits, option)
        assert_agree(found.logits, wanted.logits, option)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ALL)
def test_every_image_takes_its_own_path(kind: object, isa: str, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, folder), engine="portable")
    native = InferenceSession(bundle(kind, folder), engine="native", isa=isa, threads=2)
    images = pixels(kind)
    decisions = drawn_paths(portable, len(images))
    wanted = portable.run(images, decisions=decisions)
    for _ in range(3):  # what one image leaves behind must not matter to the next
        found = native.run(images, decisions=decisions)
        assert_agree(found.logits, wanted.logits)


@pytest.mark.parametrize("kind", ALL)
def test_gates_decide_alike(kind: object, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, folder), engine="portable")
    native = InferenceSession(bundle(kind, folder), engine="native")
    images = pixels(kind, 24)
    for budget in (0.01, 0.05, 0.2, 0.5):
        wanted = portable.run(images, budget=budget)
        found = native.run(images, budget=budget)
        assert (found.decisions == wanted.decisions).mean() > 0.98
        same = (found.decisions == wanted.decisions).all(1)
        assert_agree(found.logits[same], wanted.logits[same])


def test_second_looks_are_the_same(folder: Path) -> None:
    net = network(Wide)
    images = images_for(Wide, 24)
    with torch.no_grad():
        middle = float(net(images, budget=0.05).logits.softmax(1).amax(1).median())
    before = net.spec
    try:
        rows = ((0.04, 0.02, 0.3, middle), (0.2, 0.05, 0.5, middle))
        net.spec = before.model_copy(update={"cascade": rows})
        fracskip.export(net, folder / "cascade.fsk")
    finally:
        net.spec = before
    portable = InferenceSession(folder / "cascade.fsk", engine="portable")
    native = InferenceSession(folder / "cascade.fsk", engine="native")
    wanted, found = (each.run(pixels(Wide, 24), budget=0.1) for each in (portable, native))
    assert wanted.before is not None
    assert found.before is not None
    assert 0 < wanted.before.again.sum() < 24
    np.testing.assert_array_equal(found.before.again, wanted.before.again)
    np.testing.assert_array_equal(found.decisions, wanted.decisions)
    assert_agree(found.logits, wanted.logits)


def test_what_is_always_executed_runs_on_integers(folder: Path) -> None:
    native = InferenceSession(bundle(Bottleneck, folder), engine="native")
    for block, option, names in native.kernels():
        if option in ("always", "skip", "2", "3", "4", "6", "8"):
            assert all("int8" in name for name in names), (block, option, names)
        else:
            assert any("fp32" in name for name in names), (block, option, names)


@pytest.mark.parametrize("isa", ISAS)
def test_wide_images_are_read_where_they_lie(isa: str, tmp_path: Path) -> None:
    """Small ones are copied before a projection leaves pixels out."""
    torch.manual_seed(0)
    images = make_images(4, (36, 40))
    net = fracskip.convert(
        settled(Network(Bottleneck), images),
        (8,),
        example_input=images[:1],
        calibration=[images],
        quant=QuantConfig(stream="int8"),
    )
    fracskip.export(net, tmp_path / "wide.fsk")
    found, wanted = (
        InferenceSession(tmp_path / "wide.fsk", engine=engine, isa=on).run(
            images.permute(0, 2, 3, 1).contiguous().numpy()
        )
        for engine, on in (("native", isa), ("portable", "auto"))
    )
    np.testing.assert_array_equal(found.logits, wanted.logits)


def test_grids_that_do_not_meet_are_refused(folder: Path) -> None:
    """By both readers."""
    data = bundle(Bottleneck, folder).read_bytes()
    found = parse_bundle(data)
    parts = found.plan.network.parts  # type: ignore[union-attr]
    identity = next(i for i, part in enumerate(parts) if part.gated and part.hands_on)
    own, last = f"parts.{identity}", f"parts.{len(parts) - 1}"
    assert f"{own}.8.0.input" not in found.tensors  # it takes the stream's levels
    faults: tuple[tuple[str, float | None, str], ...] = (
        (f"{own}.step", None, "is missing"),
        (f"{own}.step", 0.0, "not above zero"),
        (f"{own}.step", 3.5, "is not that of the part before"),
        (f"{own}.zero", 256.0, "is no level of 8 bits"),
        (f"{own}.zero", 7.0, "is not 0"),
        (f"{own}.8.0.zero", 7.0, "is not that of the part before"),
        (f"{own}.4.0.input", None, "is missing"),
        ("parts.0.0.input", None, "is missing"),
        (f"{last}.step", 1.0, "no place for tensor"),
    )
    native.Engine(Parts(data).join())
    for name, value, message in faults:
        changed = Parts(data)
        if value is None:
            del changed.tensors[name]
        else:
            changed.tensors[name] = ("F32", [1], np.float32(value).tobytes())
        with pytest.raises(native.BundleError, match=message):
            native.Engine(changed.join())
        with pytest.raises(BundleError):
            parse_bundle(changed.join())


def test_plans_that_are_no_stream_are_refused(folder: Path) -> None:
    """By both readers."""
    data = bundle(Bottleneck, folder).read_bytes()

    def gated(plan: Plan) -> Plan:
        parts: list[Plan] = plan["network"]["parts"]
        return next(part for part in parts if part["gated"])

    faults: tuple[tuple[Callable[[Plan], Any], str], ...] = (
        (lambda plan: plan.update(stream="int4"), "must be 'float' or 'int8'"),
        (lambda plan: plan["network"]["parts"][0].update(ops=[]), "has no operations"),
        (lambda plan: gated(plan)["after"][0].update(act="relu6"), "must be empty or 'relu'"),
        (lambda plan: plan["cost"].update(fixed_bits=33), "from 1 to 32"),
        (lambda plan: plan["cost"].update(fixed=8), "unknown member"),
    )
    for change, message in faults:
        changed = Parts(data)
        change(changed.plan)
        with pytest.raises(native.BundleError, match=message):
            native.Engine(changed.join())
        with pytest.raises(BundleError):
            parse_bundle(changed.join())


def test_signed_grids_have_a_zero(folder: Path) -> None:
    tensors = read_bundle(bundle(Inverted, folder)).tensors
    assert any(name.count(".") == 2 and name.endswith(".zero") for name in tensors)
