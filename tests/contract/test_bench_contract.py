"""The benchmark's record, its command, and its figure: scripts and reports depend on them."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from fracskip.bench import onnx_engine, run
from fracskip.bench.run import ALL_ENGINES, ENGINES, Plan, bench
from fracskip.bench.torch_engines import precisions as torch_precisions
from fracskip.cli import main
from fracskip.errors import ConfigError, MissingExtraError

STATISTICS = {"mean", "p50", "p99", "round_means", "round_medians"}


class Silent:
    def say(self, text: str) -> None:
        pass

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda count: None)


def types(tree: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in tree.items()}


@pytest.fixture
def one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "recipes", lambda vnni: [onnx_engine.Recipe()])


@pytest.fixture
def record(checkpoint_file: Path, pictures: Path, one_recipe: None) -> dict[str, Any]:
    plan = Plan(
        str(checkpoint_file),
        engines=("portable", "torch", "onnxruntime"),
        images=9,
        rounds=2,
        data=f"folder:{pictures}",
        frontier=(str(checkpoint_file),),
        command=("fracskip", "bench"),
    )
    tree: dict[str, Any] = json.loads(json.dumps(bench(plan, Silent())))
    return tree


def test_keys(record: dict[str, Any]) -> None:
    assert types(record) == {
        "schema": str,
        "date": str,
        "command": list,
        "policy": list,
        "model": dict,
        "backbone": dict,
        "frontier": list,
        "data": dict,
        "images": int,
        "calibration_images": int,
        "rounds": int,
        "threads": int,
        "machine": dict,
        "versions": dict,
        "contenders": list,
        "ratios": dict,
        "missing": list,
    }
    assert record["schema"] == "fracskip.bench/1"
    assert types(record["model"]) == {
        "name": str,
        "digest": str,
        "model": str,
        "options": list,
        "target": float,
    }
    assert types(record["backbone"]) == {"model": str, "source": str, "digest": str}
    assert record["backbone"]["source"] == "the dynamic network's own weights at full precision"
    assert types(record["machine"]) == {
        "processor": str,
        "flags": list,
        "architecture": str,
        "system": str,
        "cores_in_all": int,
        "cores_used": int,
        "load_before": list,
        "load_after": list,
        "is_loaded": bool,
    }
    assert set(record["versions"]) == {
        *("python", "fracskip", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf")
    }


def test_contenders(record: dict[str, Any]) -> None:
    rows = record["contenders"]
    assert [row["name"] for row in rows] == [
        "portable by its gates",
        "portable all in full",
        "portable all at 4 bits",
        "portable all skipped",
        *(f"torch {precision}" for precision in torch_precisions()),
        "onnxruntime fp32",
        "onnxruntime int8",
        "onnxruntime int8, resnet8",
    ]
    for row in rows:
        assert set(row) == {
            *("name", "engine", "precision", "role", "network", "option", "settings"),
            *("accuracy", "accuracy_95", "cp", "latency_us", "engine_latency_us", "cpu_us"),
            *("disturbed", "throughput", "tried"),
        }
        assert set(row["latency_us"]) == set(row["cpu_us"]) == STATISTICS
        assert len(row["latency_us"]["round_means"]) == record["rounds"] == 2
        assert set(row["throughput"]) == {"images_per_second", "how"}
        low, high = row["accuracy_95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        ours = row["engine"] == "portable"
        assert (row["engine_latency_us"] is not None) == ours
        assert (row["cp"] is not None) == ours


def test_ratios(record: dict[str, Any]) -> None:
    ratios = record["ratios"]
    assert ratios["to"] == "portable by its gates"
    assert list(ratios["of"]) == [row["name"] for row in record["contenders"][1:]]
    for clocks in ratios["of"].values():
        assert set(clocks) == {"wall", "cpu"}
        assert clocks["cpu"] is not None
        for spread in filter(None, clocks.values()):
            assert 0 < spread["lowest"] <= spread["median"] <= spread["highest"]


def test_engines() -> None:
    assert ENGINES == ("native", "torch", "torch-compile", "onnxruntime", "openvino")
    assert set(ALL_ENGINES) - set(ENGINES) == {"portable"}


def test_command(
    checkpoint_file: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one_recipe: None,
) -> None:
    target, figure = tmp_path / "r.json", tmp_path / "r.svg"
    words = ["bench", str(checkpoint_file), "--engines", "portable,onnxruntime", "--images", "6"]
    words += ["--rounds", "2", "--data", f"folder:{pictures}"]
    words += ["--json", str(target), "--figure", str(figure)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "by its gates" in out
    assert "onnxruntime int8" in out
    assert json.loads(target.read_text())["schema"] == "fracskip.bench/1"
    root = ElementTree.fromstring(figure.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "by its gates" in root.attrib["aria-label"]
    assert "#f0e" not in figure.read_text(encoding="utf-8"), "a sentinel colour was left"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engines", "tensorrt"], "engine 'tensorrt' is unknown: use native, portable"),
        (["--engines", ","], "no engine was named"),
        (["--engines", "torch", "--frontier", "x"], "--frontier needs one of the engines"),
        (["--engines", "torch", "--backbone", "none.safetensors"], "does not exist"),
        (["--figure", "a.png"], "does not end in .svg"),
        (["--images", "0"], "a whole number from 1"),
    ],
)
def test_errors(
    words: list[str], message: str, checkpoint_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", str(checkpoint_file), *words])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_bundle_needs_a_backbone_for_the_others(tmp_path: Path, checkpoint_file: Path) -> None:
    from fracskip.checkpoint import load
    from fracskip.deployment.bundle import export_bundle

    export_bundle(load(checkpoint_file), tmp_path / "net.fsk")
    with pytest.raises(ConfigError, match="give its backbone with --backbone FILE"):
        bench(Plan(str(tmp_path / "net.fsk"), engines=("torch",)), Silent())


def test_engines_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, checkpoint_file: Path, pictures: Path
) -> None:
    reasons = {"openvino": "needs openvino: pip install 'fracskip[bench]'"}
    monkeypatch.setattr(run, "obstacle", lambda engine: reasons.get(engine, ""))
    monkeypatch.setattr(run, "instruction_sets", lambda: ())
    with pytest.raises(MissingExtraError, match=r"engine openvino needs openvino: pip install"):
        bench(Plan(str(checkpoint_file), engines=("openvino",)), Silent())
    with pytest.raises(MissingExtraError, match="engine native was not built"):
        bench(Plan(str(checkpoint_file), engines=("native",)), Silent())
    monkeypatch.setattr(run, "ENGINES", ("native", "torch", "openvino"))
    plan = Plan(str(checkpoint_file), images=4, rounds=1, data=f"folder:{pictures}")
    found = bench(plan, Silent())
    assert {row["engine"] for row in found["contenders"]} == {"torch"}
    assert [item["engine"] for item in found["missing"]] == ["native", "openvino"]
