"""The benchmark's record, its command, and its figure: scripts and reports depend on them."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from fracskip.bench import onnx_engine, run, timing
from fracskip.bench.run import ALL_ENGINES, ENGINES, Plan, bench
from fracskip.bench.torch_engines import precisions as torch_precisions
from fracskip.cli import main
from fracskip.errors import ConfigError, MissingExtraError
from fracskip.models import create_model
from fracskip.runtime import engines
from fracskip.runtime.cascade_bundle import write_cascade
from support.small_cascades import small_cascade
from support.stand_in_engine import StandInEngine

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


# -- cascades -------------------------------------------------------------------------------------


@pytest.fixture
def make_cascade_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, str]]:
    """A cascade whose engine is a stand-in, and the name of a data set for it."""
    monkeypatch.setattr(engines, "build_portable", StandInEngine)
    monkeypatch.setattr(timing, "interruptions", lambda: 0)  # all calls count

    def make(*sizes: tuple[int, int]) -> tuple[Path, str]:
        write_cascade(tmp_path / "photos.fsk", small_cascade(sizes, classes=2))
        for split, label, shade in itertools.product(("train", "test"), (0, 1), (40, 200)):
            file = tmp_path / "pictures" / split / f"class {label}" / f"{shade}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (shade, shade, shade)).save(file)
        return tmp_path / "photos.fsk", f"folder:{tmp_path / 'pictures'}"

    return make


def test_a_cascade(
    make_cascade_file: Callable[..., tuple[Path, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, data = make_cascade_file((12, 12), (16, 16))
    save_file(create_model("resnet8", num_classes=2).state_dict(), tmp_path / "b.safetensors")
    target, figure = tmp_path / "r.json", tmp_path / "r.svg"
    words = ["bench", str(path), "--engines", "portable,torch", "--rounds", "2", "--data", data]
    words += ["--backbone", str(tmp_path / "b.safetensors")]
    assert main([*words, "--json", str(target), "--figure", str(figure)]) == 0
    record = json.loads(target.read_text())
    assert types(record["model"]) == {
        "name": str,
        "digest": str,
        "model": str,
        "score": str,
        "members": list,
    }
    assert record["model"]["members"] == [
        {
            "name": "random basic",
            "image": [side, side],
            "options": ["8"],
            "budget": None,
            "cost": cost,
        }
        for side, cost in ((12, 0.25), (16, 1.0))
    ]
    rows = {row["name"]: row for row in record["contenders"]}
    ours = {name: row for name, row in rows.items() if row["engine"] == "portable"}
    # Scores are 40/255 and 200/255, thresholds 0.9 and 0.66; times are the stand-in's.
    assert {
        name: (row["role"], row["accuracy"], row["engine_latency_us"]["mean"])
        for name, row in ours.items()
    } == {
        "portable 0 > 1 at budget 0.75": ("dynamic", 0.5, 30),
        "portable 0 > 1 at budget 0.602": ("dynamic", 0.5, (30 + 10) / 2),
        "portable member 1: random basic 16x16 alone": ("member", 0.5, 20),
        "portable member 0: random basic 12x12 alone": ("member", 0.5, 10),
    }
    assert record["ratios"]["to"] == "portable 0 > 1 at budget 0.75"
    assert rows["torch fp32"]["role"] == "backbone"
    assert "random basic 12x12 alone: 50.0% at" in figure.read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "0 > 1: images that member 0 is not sure of are escalated to member 1." in out


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((12, 12), (16, 16)), "give its last member's backbone with --backbone FILE, or"),
        (((16, 16), (12, 12)), "its last member others, .* use --engines native"),
    ],
)
def test_a_cascade_beside_others(
    make_cascade_file: Callable[..., tuple[Path, str]],
    sizes: tuple[tuple[int, int], ...],
    message: str,
) -> None:
    path, data = make_cascade_file(*sizes)
    with pytest.raises(ConfigError, match=message):
        bench(Plan(str(path), engines=("portable", "torch"), data=data), Silent())


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
