"""A cascade as ONNX models: the example gives the native engine's answers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fracskip
from fracskip.runtime import Cascade
from support.small_cascades import small_cascade


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("onnxruntime")
    path = Path(__file__).parents[3] / "examples" / "cascade_onnx.py"
    spec = importlib.util.spec_from_file_location("cascade_onnx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("averaged", [False, True])
def test_models_of_a_cascade_give_its_answers(
    example: ModuleType, tmp_path: Path, averaged: bool
) -> None:
    net = Cascade(small_cascade(((8, 10), (12, 12)), thresholds=(0.6, 0.4), averaged=averaged))
    fracskip.export(net, tmp_path / "two.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "two.0.onnx",
        "two.1.onnx",
        "two.json",
    ]
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    found = net.run(images, budget=0.9)
    cascade = example.OnnxCascade(tmp_path / "two.json", 0.9)
    logits, members = zip(*(cascade.run(image) for image in images), strict=True)
    np.testing.assert_allclose(np.stack(logits), found.logits, rtol=1e-3, atol=1e-3)
    assert sum(members) == sum(len(execution.rows) for execution in found.executions)
