"""Every engine runs the same network: logits agree, and quantised ones nearly do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fracskip.bench import onnx_engine, openvino_engine, peers, torch_engines
from fracskip.bench.contender import Contender
from fracskip.bench.native import native_contenders
from fracskip.bench.peers import Bench, float_contenders, int8_contender, obstacle
from fracskip.bench.subject import Images, Plain, load_images, plain_of
from fracskip.deployment.bundle import export_bundle
from fracskip.dynamic import DynamicNetwork, preprocess


@pytest.fixture
def images(pictures: Path, net: DynamicNetwork) -> Images:
    name = f"folder:{pictures}"
    return load_images(name, net.spec.image, net.spec.class_names, 6, name)


@pytest.fixture
def plain(net: DynamicNetwork) -> Plain:
    return plain_of(net)


@pytest.fixture
def bench(images: Images) -> Bench:
    return Bench(images, threads=1, cores=2, say=lambda text: None)


def logits(one: Contender) -> NDArray[np.float32]:
    # Engines may hand out the same memory again and again.
    return np.concatenate([np.array(one.run(given)) for given in one.inputs])


def expected(plain: Plain, images: Images) -> NDArray[np.float32]:
    with torch.no_grad():
        return plain.net(preprocess(images.test.images, plain.image)).numpy()


@pytest.mark.parametrize("engine", ["torch", "torch-compile", "onnxruntime", "openvino"])
def test_full_precision(
    engine: str, plain: Plain, images: Images, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Inductor takes half a minute, and is torch's to test.
    monkeypatch.setattr(torch_engines, "_compile", lambda net, example: net)
    threads = torch.get_num_threads()
    one = float_contenders(engine, plain, bench)[0]
    assert (one.engine, one.precision, one.role) == (engine, "fp32", "backbone")
    assert one.name == f"{engine} fp32"
    np.testing.assert_allclose(logits(one), expected(plain, images), rtol=1e-3, atol=1e-3)
    for load in one.loads():
        assert load.run() > 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_eight_bits(
    engine: str, plain: Plain, images: Images, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = onnx_engine.recipes(vnni=False)[:1] + onnx_engine.recipes(vnni=False)[3:4]
    monkeypatch.setattr(onnx_engine, "recipes", lambda vnni: few)
    monkeypatch.setattr(openvino_engine, "has_nncf", lambda: False)
    one = int8_contender(engine, plain, bench, reference=0.0)
    assert one.name == f"{engine} int8"
    assert len(one.tried) == (2 if engine == "onnxruntime" else 0)
    wanted = expected(plain, images)
    assert np.abs(logits(one) - wanted).max() < 0.25 * np.ptp(wanted)
    assert not np.array_equal(logits(one), wanted)
    for load in one.loads():
        assert load.run() > 0


def test_frontier_points_are_named_by_their_network(
    plain: Plain, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_engine, "recipes", lambda vnni: [onnx_engine.Recipe()])
    other = replace(plain, name="resnet8 b")
    one = int8_contender("onnxruntime", other, bench, 0.0, "frontier")
    assert (one.name, one.role) == ("onnxruntime int8, resnet8 b", "frontier")


@pytest.mark.parametrize("vnni", [True, False])
def test_ranges_are_reduced_where_sums_saturate(vnni: bool) -> None:
    recipes = onnx_engine.recipes(vnni)
    assert {recipe.format for recipe in recipes} == {"QDQ", "QOperator"}
    assert {recipe.calibration for recipe in recipes} == {"MinMax", "Percentile", "Entropy"}
    assert any(recipe.reduce_range for recipe in recipes) != vnni


def test_our_own(
    net: DynamicNetwork, images: Images, tmp_path: Path, make_net: Callable[..., DynamicNetwork]
) -> None:
    path = tmp_path / "net.fsk"
    export_bundle(net, path)
    found = native_contenders(path, images, engine="portable", threads=1, cores=2)
    assert [one.option for one in found] == [None, "full", "4", "skip"]
    assert [one.precision for one in found] == ["mixed", "fp32", "int8", "mixed"]
    assert [one.role for one in found] == ["dynamic", "forced", "forced", "forced"]
    np.testing.assert_allclose(
        logits(found[1]), expected(plain_of(net), images), rtol=1e-3, atol=1e-3
    )
    for one in found:
        assert one.own_latency_us is not None
        assert one.own_latency_us() > 0 if one is found[1] else True
        assert one.cp is not None
    assert [found[index].cp() for index in (1, 2, 3)] == [1.0, 1 / 64, 0.0]  # type: ignore[misc]
    assert found[0].loads()[0].run() == len(images.test)

    static = tmp_path / "static.fsk"
    export_bundle(make_net(options=["full"]), static)
    (only,) = native_contenders(static, images, engine="portable", threads=1, cores=1)
    assert only.role == "dynamic"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle("openvino") == ""
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert obstacle("onnxruntime") == ("needs onnx and onnxruntime: pip install 'fracskip[bench]'")
    assert obstacle("torch") == ""
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert "C++ compiler" in obstacle("torch-compile")
