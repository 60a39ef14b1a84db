"""A sweep drawn among networks that were trained for one cost each."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_records import make_evaluation, make_sweep

from fracskip.report.curves import Rival, accuracy_curve, rival_of
from fracskip.report.reading import load_record
from fracskip.report.records import RunRecord, SweepRecord

TOOL = Path(__file__).parents[3] / "tools" / "draw_curve.py"


def sweep_at(folder: Path) -> Path:
    (folder / "sweep.json").write_text(json.dumps(make_sweep()))
    return folder / "sweep.json"


def run_at(folder: Path, name: str, ended: bool = True) -> Path:
    tree = {"schema": "fracskip.run/1", "name": name, "epochs": []}
    if ended:
        tree = {**tree, "test": make_evaluation(), "seconds": 1.0}
    (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder / f"{name}.json"


def test_every_point_is_said_in_words_and_drawn(tmp_path: Path) -> None:
    sweep = load_record(sweep_at(tmp_path))
    assert isinstance(sweep, SweepRecord)
    best = max(point.accuracy for point in sweep.points)
    rivals = [Rival("static 4 bits", 0.0156, best - 0.01, "4"), Rival("poor", 0.004, best - 0.2)]
    one, more = (accuracy_curve(sweep, some) for some in (rivals[:1], rivals))
    assert "static 4 bits" in one
    assert f"poor: {100 * (best - 0.2):.2f}%" in more  # under the lower edge, with its figure
    assert more.count("<path") > one.count("<path")
    ElementTree.fromstring(more)


def test_a_finished_run_is_a_rival(tmp_path: Path) -> None:
    run = load_record(run_at(tmp_path, "mixed"))
    assert isinstance(run, RunRecord)
    assert run.test is not None
    rival = rival_of(run)
    assert rival == Rival("mixed", run.test.cp, run.test.accuracy)
    halfway = load_record(run_at(tmp_path, "halfway", ended=False))
    assert isinstance(halfway, RunRecord)
    assert rival_of(halfway) is None


def test_the_tool_draws_from_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["draw_curve.py", *map(str, words)])
        runpy.run_path(str(TOOL), run_name="__main__")

    out = tmp_path / "curve.svg"
    draw(sweep_at(tmp_path), run_at(tmp_path, "mixed"), "--figure", out)
    assert ElementTree.parse(out).getroot().tag.endswith("svg")
    with pytest.raises(SystemExit):
        draw(sweep_at(tmp_path), run_at(tmp_path, "halfway", ended=False), "--figure", out)
    assert "no record of a finished run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw(run_at(tmp_path, "mixed"), run_at(tmp_path, "mixed"), "--figure", out)
    assert "no record of a sweep" in capsys.readouterr().err
