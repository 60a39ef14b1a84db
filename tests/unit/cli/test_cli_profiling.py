"""`fracskip bench --profile`: tables that fit a terminal, a record, one line where it can't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fracskip.runtime import InferenceSession, profiling
from fracskip.runtime.cascade import write_cascade
from fracskip.runtime.engines import instruction_sets
from fracskip.runtime.profiling import Peaks
from support.random_bundle import random_bundle
from support.small_cascades import small_cascade

Run = Callable[..., Any]  # conftest.Answer
FEW = ("--profile", "--images", 3, "--rounds", 2)

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the native engine is not built")


@pytest.fixture(autouse=True)
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known ones: 100 MACs a nanosecond, 25 of float32, 10 bytes."""
    known = Peaks(int8=100e9, fp32=25e9, bf16=50e9, read=10e9)
    monkeypatch.setattr(profiling, "measure_peaks", lambda session: known)
    monkeypatch.setenv("COLUMNS", "80")


def test_the_bundled_network(fracskip: Run) -> None:
    isa = instruction_sets()[0]
    answer = fracskip("bench", "bundled", *FEW, "--isa", isa, "--json", "p.json")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("resnet38 on ")
    text = " ".join(answer.out.split())
    assert f"threads, {isa}: " in text
    assert "(means over 3 CIFAR-10 sample images, medians of 2 rounds)" in text
    assert "kernel steps µs share GMAC/s GB/s roofline" in text
    assert "The 10 steps that take longest part option kernel" in text
    assert "1 thread(s) reached 100 int8, 25 fp32, 50 bf16 GMAC/s" in text

    record = json.loads(Path("p.json").read_text())
    assert record["schema"] == "fracskip.profile/1"
    words = ["--threads", "1", "--isa", isa, "--images", "3", "--rounds", "2", "--profile"]
    assert record["command"] == ["fracskip", "bench", "bundled", *words]
    session = InferenceSession("bundled")
    assert record["model"] == {"name": "bundled", "digest": session.digest, "model": "resnet38"}
    assert record["data"] == {"name": "CIFAR-10 sample", "split": "test"}
    counts = ("images", "rounds", "threads", "isa")
    assert [record[key] for key in counts] == [3, 2, 1, isa]
    assert record["peaks"] == {"int8": 100e9, "fp32": 25e9, "bf16": 50e9, "read": 10e9}
    (network,) = record["networks"]
    assert (network["name"], network["image"], network["images"]) == ("resnet38", [32, 32], 3)
    total = sum(step["calls"] * step["us"] for step in network["steps"]) / 3
    assert record["total_us"] == pytest.approx(total)
    assert record["latency_us"] > 0
    (stem,) = (s for s in network["steps"] if s["part"] == "stem" and s["macs"])
    assert stem["macs"] == session.profile.stem_macs
    assert stem["roofline"] == pytest.approx(
        max(stem["macs"] / 25e3, stem["bytes"] / 10e3) / stem["us"]
    )
    gates = next(step for step in network["steps"] if step["kernel"] == "gates")
    assert (gates["calls"], gates["roofline"]) == (3 * len(session.plan.gated), None)


def test_random_pixels_where_no_bundled_image_fits(fracskip: Run, tmp_path: Path) -> None:
    write_cascade(tmp_path / "c.fsk", small_cascade())
    answer = fracskip("bench", tmp_path / "c.fsk", *FEW, "--threads", 2, "--json", "p.json")
    assert answer.code == 0
    assert answer.err.startswith("note: pixels are random, for no bundled images fit; ")
    assert "Of 3 images so many came to each network: 0: 3, 1: " in " ".join(answer.out.split())
    record = json.loads(Path("p.json").read_text())
    assert record["data"] == {"name": "random", "split": ""}
    assert [network["image"] for network in record["networks"]] == [[12, 12], [16, 16]]


def test_a_checkpoint_on_images_of_its_own(
    fracskip: Run, checkpoint_file: Path, pictures: Path
) -> None:
    words = ("--data", f"folder:{pictures}", "--json", "p.json")
    answer = fracskip("bench", checkpoint_file, *FEW, *words)
    assert (answer.code, answer.err) == (0, "")
    record = json.loads(Path("p.json").read_text())
    assert (record["model"]["name"], record["images"]) == (str(checkpoint_file), 3)
    assert (record["data"]["split"], record["isa"]) == ("test", instruction_sets()[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.fsk", *FEW), "bundle none.fsk does not exist"),
        (("bundled", *FEW, "--isa", "mmx"), "isa 'mmx' is not of this processor: use one of auto"),
        (("bundled", *FEW, "--data", "sheep"), "data set 'sheep' is unknown"),
        (
            ("bundled", *FEW, "--engines", "native"),
            "--profile times the native engine's steps alone: leave --engines out",
        ),
        (
            ("bundled", *FEW, "--frontier", "x.safetensors"),
            "--profile times the native engine's steps alone: leave --frontier out",
        ),
        (("bundled", *FEW, "--size", 32), "--size is of a plain network"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_errors(fracskip: Run, words: tuple[object, ...], message: str) -> None:
    assert message in fracskip("bench", *words).error


def test_plain_loops_have_no_peaks(fracskip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "80")
    Path("n.fsk").write_bytes(random_bundle(1, image=(8, 8)))
    answer = fracskip("bench", "n.fsk", *FEW, "--isa", "scalar")
    assert answer.code == 0
    assert "roofline: not measured with plain loops." in " ".join(answer.out.split())
    assert "%" in answer.out
    assert all(line.rstrip().endswith("-") for line in answer.out.splitlines() if "%" in line)
