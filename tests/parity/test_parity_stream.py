"""Traced networks on a stream of 8-bit integers: what they run on, and what readers refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.native.test_native_reader import Parts, native
from tests.parity.test_parity_graph import INTEGERS, ISAS, bundle
from tests.support.residual_networks import Bottleneck, Inverted, Network, make_images, settled

import fracskip
from fracskip.config import QuantConfig
from fracskip.errors import BundleError
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import parse_bundle, read_bundle

Plan = dict[str, Any]

pytestmark = pytest.mark.skipif(not ISAS, reason="no native engine was built")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def test_what_is_always_executed_runs_on_integers(folder: Path) -> None:
    native = InferenceSession(bundle(Bottleneck, "int8", folder), engine="native")
    for block, option, names in native.kernels():
        if option in ("skip", *INTEGERS):
            assert all("int8" in name for name in names), (block, option, names)
        else:
            assert any("fp32" in name or "bf16" in name for name in names), (block, option, names)


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
    data = bundle(Bottleneck, "int8", folder).read_bytes()
    found = parse_bundle(data)
    parts = found.plan.network.parts
    identity = next(i for i, part in enumerate(parts) if part.gated and part.skip_is_identity)
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
        ("parts.0.8.0.input", None, "is missing"),
        (f"{last}.step", 1.0, "no place for tensor"),
    )
    native.Engine(Parts.of(data).bundle())
    for name, value, message in faults:
        changed = Parts.of(data)
        if value is None:
            del changed.tensors[name]
        else:
            changed.tensors[name] = ("F32", [1], np.float32(value).tobytes())
        with pytest.raises(native.BundleError, match=message):
            native.Engine(changed.bundle())
        with pytest.raises(BundleError):
            parse_bundle(changed.bundle())


def test_plans_that_are_no_stream_are_refused(folder: Path) -> None:
    """By both readers."""
    data = bundle(Bottleneck, "int8", folder).read_bytes()

    def gated(plan: Plan) -> Plan:
        parts: list[Plan] = plan["network"]["parts"]
        return next(part for part in parts if part["gated"])

    faults: tuple[tuple[Callable[[Plan], Any], str], ...] = (
        (lambda plan: plan.update(stream="int4"), "neither 'float' nor 'int8'"),
        (lambda plan: plan["network"]["parts"][0].update(branch=[]), "has an empty branch"),
        (lambda plan: gated(plan)["after"][0].update(act="relu6"), "must be empty or 'relu'"),
        (lambda plan: plan["cost"].update(stem_bits=33), "from 1 to 32"),
        (lambda plan: plan["cost"].update(fixed=8), "unknown member"),
    )
    for change, message in faults:
        changed = Parts.of(data)
        change(changed.plan)
        with pytest.raises(native.BundleError, match=message):
            native.Engine(changed.bundle())
        with pytest.raises(BundleError):
            parse_bundle(changed.bundle())


def test_signed_grids_have_a_zero(folder: Path) -> None:
    tensors = read_bundle(bundle(Inverted, "int8", folder)).tensors
    assert any(name.count(".") == 2 and name.endswith(".zero") for name in tensors)
