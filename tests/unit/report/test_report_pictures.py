"""The cheapest and the dearest images in one figure."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from synthetic_records import escalated

from fracskip.report.pictures import cheapest_and_dearest
from fracskip.report.records import EvaluationRecord
from fracskip.report.svg import standalone
from fracskip.report.wording import cost


def test_every_example_is_shown_with_what_it_cost(evaluation: dict[str, Any]) -> None:
    record = EvaluationRecord.model_validate(escalated(evaluation))
    root = ElementTree.fromstring(standalone(cheapest_and_dearest(record, count=3)))
    images = [e.get("href") for e in root.iter() if e.tag.endswith("}image")]
    shown = [*record.examples.cheapest[:3], *record.examples.dearest[:3]]
    assert images == [f"data:image/png;base64,{example.png}" for example in shown]
    texts = [e.text for e in root.iter() if e.tag.endswith("}text")]
    for example in shown:
        assert example.label in texts
        assert cost(example.cp) in texts
        assert (f"✗ {example.predicted}" in texts) or example.is_right
    bars = [e for e in root.iter() if e.tag.endswith("}rect")]
    members = sum(1 + (example.first_allocation is not None) for example in shown)
    assert len(bars) == members * len(record.blocks)
    assert shown[0].label in root.get("aria-label", "")


def test_a_name_cannot_be_markup(evaluation: dict[str, Any]) -> None:
    evaluation["examples"]["cheapest"][0]["label"] = "<script>alert(1)</script>"
    svg = cheapest_and_dearest(EvaluationRecord.model_validate(evaluation))
    assert "<script" not in svg


def test_no_examples_are_an_empty_figure(evaluation: dict[str, Any]) -> None:
    evaluation["examples"] = {"cheapest": [], "dearest": []}
    svg = cheapest_and_dearest(EvaluationRecord.model_validate(evaluation))
    root = ElementTree.fromstring(svg)
    assert "none" in root.get("aria-label", "")
    assert not [e for e in root.iter() if e.tag == "image"]
