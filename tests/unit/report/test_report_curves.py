"""Networks for every budget drawn among networks that were trained for one cost each."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic_records import make_evaluation, make_sweep

from fracskip.errors import DataError
from fracskip.report.curves import (
    Curve,
    Spot,
    accuracy_curves,
    swept,
    trained_alone,
)
from fracskip.report.pictures import cheapest_and_dearest
from fracskip.report.reading import load_record
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord
from fracskip.report.svg import standalone

ROOT = Path(__file__).parents[3]


def sweep(**checkpoint: Any) -> SweepRecord:
    tree = make_sweep()
    tree["checkpoint"] |= checkpoint
    return SweepRecord.model_validate(tree)


def run(name: str, ended: bool = True) -> RunRecord:
    tree: dict[str, Any] = {"schema": "fracskip.run/2", "name": name, "epochs": []}
    if ended:
        tree |= {"test": make_evaluation(), "seconds": 1.0}
    return RunRecord.model_validate(tree)


def test_a_sweep_and_finished_runs_become_curves() -> None:
    record, done = sweep(), run("mixed")
    curve = swept(record, "ours")
    assert curve.label == "ours"
    assert [(s.cost, s.accuracy) for s in curve.spots] == [
        (p.cp, p.accuracy) for p in record.points
    ]
    assert done.test is not None
    alone = trained_alone([done], "theirs")
    assert alone.spots == (Spot(done.test.cp, done.test.accuracy),)
    with pytest.raises(DataError, match="run halfway has not ended"):
        trained_alone([run("halfway", ended=False)], "theirs")


def test_every_curve_is_said_in_words_and_drawn() -> None:
    ours = swept(sweep(), "ours")
    best = max(spot.accuracy for spot in ours.spots)
    near = Curve("static", (Spot(0.0156, best - 0.01, "4 bits", "4"),))
    far = Curve("poor", (Spot(0.004, best - 0.2),))
    one, more = (accuracy_curves([ours, *some], 10_000) for some in ([near], [near, far]))
    assert "ours: 88.00% at 1.03%" in one
    assert "var(--o-4)" in one
    assert f">{100 * (best - 0.2):.2f}%<" in more  # under the lower edge, with its figure
    assert more.count("<path") > one.count("<path")
    ElementTree.fromstring(more)


def test_figures_of_the_documents_are_drawn_from_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every figure under results/ is one that the tool draws, as the tool draws it.

    One shows images of a data set that is not here: the tool says so, and leaves it.
    """
    monkeypatch.setenv("FRACSKIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["draw_figures.py", "--to", str(tmp_path)])
    left = r"^\S+/dfs_resnet38_images\.svg is left as it is: .*`fracskip data cifar10`\.$"
    with pytest.raises(SystemExit, match=left):
        runpy.run_path(str(ROOT / "tools" / "draw_figures.py"), run_name="__main__")
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    record = load_record(ROOT / "results" / "eval_bundled_cifar10.json")
    assert isinstance(record, EvaluationRecord)
    assert "dfs_resnet38_images.svg" not in drawn
    drawn["dfs_resnet38_images.svg"] = standalone(cheapest_and_dearest(record))
    kept = {path.name: path.read_text() for path in (ROOT / "results").glob("*.svg")}
    assert drawn.keys() == kept.keys()
    # Coordinates may differ in the last digits where matplotlib does.
    assert {name: words(text) for name, text in drawn.items()} == {
        name: words(text) for name, text in kept.items()
    }
    texts = [path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "results.md")]
    shown = {name for text in texts for name in re.findall(r"results/(\w+\.svg)", text)}
    assert shown == kept.keys()


def words(svg: str) -> list[str]:
    """What a figure says: its label and its texts."""
    root = ElementTree.fromstring(svg)
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("}text")]
    return [root.get("aria-label", ""), *texts]


def test_the_tool_draws_what_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = str(ROOT / "tools" / "draw_figures.py")
    monkeypatch.setattr(sys, "argv", [tool, "--to", str(tmp_path), "--only", "bench_r74"])
    runpy.run_path(tool, run_name="__main__")
    assert [path.name for path in tmp_path.iterdir()] == ["bench_r74.svg"]
    monkeypatch.setattr(sys, "argv", [tool, "--only", "nothing"])
    with pytest.raises(SystemExit):
        runpy.run_path(tool, run_name="__main__")
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
