"""Sweeps in the report: figures, and a row of budgets to choose from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic_records import make_evaluation, make_sweep

from fracskip.errors import DataError
from fracskip.report import write_report
from fracskip.report.reading import load_record
from fracskip.report.records import SweepRecord
from fracskip.report.sweeps import shares_by_block
from fracskip.report.wording import percent


def written(tmp_path: Path, *trees: dict[str, Any]) -> str:
    paths = []
    for number, tree in enumerate(trees):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(tree))
    return write_report(paths, tmp_path / "report.html").read_text()


def test_a_sweep_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(make_sweep()))
    record = load_record(tmp_path / "x.json")
    assert isinstance(record, SweepRecord)
    assert len(record.points) == 5
    assert record.seconds == pytest.approx(10)


def test_every_budget_can_be_chosen_without_a_script(tmp_path: Path) -> None:
    page = written(tmp_path, make_sweep())
    assert "<script" not in page
    inputs = re.findall(r'<input type="radio"[^>]*>', page)
    assert len(inputs) == 5
    assert [" checked" in text for text in inputs] == [False, False, True, False, False]
    for place in range(1, 6):
        rule = f"input:nth-of-type({place}):checked ~ .panels > div:nth-of-type({place})"
        assert rule in page
        assert f'<label for="budget-1-{place}">' in page
    assert page.count("Asked for ") == 5
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers)


def test_a_sweep_beside_an_evaluation(tmp_path: Path) -> None:
    page = written(tmp_path, make_evaluation(), make_sweep())
    assert 'href="#budgets"' in page
    assert "One network at 5 budgets: from 88.00%" in page
    assert "a sweep over 5 budgets" in page
    alone = written(tmp_path, make_evaluation())
    assert "budgets" not in alone
    assert ".slider > input:nth-of-type" not in alone


def test_a_sweep_without_blocks(tmp_path: Path) -> None:
    tree = make_sweep()
    for point in tree["points"]:
        del point["blocks"]
    assert written(tmp_path, tree).count("Asked for ") == 5


def test_how_many_images_each_budget_looked_at_twice(tmp_path: Path) -> None:
    page = written(tmp_path, make_sweep(escalation_rate=(0.0, 0.123, 0.25, 0.31, 0.0)))
    found = re.findall(r"It escalates (\S+) of the images\.", page)
    assert found == ["0%", "12.3%", "25.0%", "31.0%", "0%"]
    # A block's shares count both members where images were escalated.
    shares = re.findall(r"Share of (\w+) that take each option", page)
    assert shares == ["images"] * 2 + ["executions"] * 6 + ["images"] * 2
    for tree in (make_sweep(), make_sweep(escalation_rate=(0.0,) * 5)):
        assert "twice" not in written(tmp_path, tree)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t["points"].reverse(), "points must ascend by budget"),
        (lambda t: t["points"].clear(), "points"),
        (lambda t: t["points"][0].update(option_share={"4": 1.0}), "option '4' is not among"),
        (lambda t: t["points"][0].update(accuracy=1.5), "points.0.accuracy"),
        (lambda t: t["points"][0].update(escalation_rate=-0.1), "points.0.escalation_rate"),
        (
            lambda t: t["points"][0].update(cp=1.2),
            "points.0: cp may be at most 1, with an escalation rate of 0",
        ),
        (lambda t: t["points"][0].update(cp=1.6, escalation_rate=0.5), "cp may be at most 1.5"),
        (lambda t: t.pop("device"), "device is missing"),
    ],
)
def test_malformed_sweeps(tmp_path: Path, spoil: Any, message: str) -> None:
    tree = make_sweep()
    spoil(tree)
    with pytest.raises(DataError, match=message):
        written(tmp_path, tree)


def test_shares_in_each_block_over_the_cost() -> None:
    record = SweepRecord.model_validate(make_sweep())
    svg = shares_by_block(record, ident="blocks")
    for block in record.points[0].blocks:
        assert f">{block.name}<" in svg
    middle = record.points[2]
    share = percent(middle.option_share["8"])
    assert f"at {percent(middle.cp, 2)}: layer1.1: skip" in svg
    assert f"8 bits {share}" in svg
    # A stacked area for each option in each block.
    assert all(svg.count(f"var(--o-{label})") >= 17 for label in ("skip", "8"))
    ElementTree.fromstring(svg)
