"""Figures: sound SVG, no traces in matplotlib, nothing lost at the edges."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pytest
from synthetic_records import make_cascade

from fracskip.intervals import wilson_interval
from fracskip.report.cascade_records import CascadeRecord
from fracskip.report.cascades import cascade_accuracy
from fracskip.report.figures import accuracy_cost, block_shares, training_curves
from fracskip.report.palette import css_colours
from fracskip.report.placement import log_ticks
from fracskip.report.records import EvaluationRecord, RunRecord

Tree = dict[str, Any]


def record_of(tree: Tree) -> EvaluationRecord:
    return EvaluationRecord.model_validate(tree)


def run_of(events: list[Tree]) -> RunRecord:
    return RunRecord.model_validate(
        {"schema": "fracskip.run/2", "name": "r38", "epochs": events[1:-1]}
    )


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def check(svg: str, ident: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    identifiers = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(identifiers)) == len(identifiers)
    assert all(name and name.startswith(f"{ident}-") for name in identifiers)
    referred = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert referred == set(identifiers)
    assert "#f0e" not in svg
    assert "http" not in svg
    assert "<style" not in svg
    colours = set(css_colours(["skip", "2", "3", "4", "6", "8", "16", "full"])[0])
    assert set(re.findall(r"var\(--([^)]+)\)", svg)) <= colours


DRAWINGS: list[Callable[..., str]] = [
    lambda tree, events, **k: accuracy_cost([("a", record_of(tree))], "cp", **k),
    lambda tree, events, **k: block_shares(
        record_of(tree).blocks, ("skip", "8", "16", "full"), **k
    ),
    lambda tree, events, **k: training_curves(run_of(events), **k),
    lambda tree, events, **k: cascade_accuracy(CascadeRecord.model_validate(make_cascade()), **k),
]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("draw", DRAWINGS)
def test_svg_is_sound_and_the_same_again(
    evaluation: Tree, run_events: list[Tree], draw: Callable[..., str], narrow: bool
) -> None:
    svg = draw(evaluation, run_events, ident="one", narrow=narrow)
    check(svg, "one")
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert draw(evaluation, run_events, ident="one", narrow=narrow) == svg


def test_matplotlib_is_left_as_it_was(evaluation: Tree) -> None:
    before = dict(mpl.rcParams)
    block_shares(record_of(evaluation).blocks[:1], ("skip", "8", "16", "full"), ident="one")
    assert dict(mpl.rcParams) == before


def test_blocks_and_shares_are_told_in_tooltips(evaluation: Tree) -> None:
    evaluation["blocks"][0] |= {"option_share": {"skip": 0.25, "8": 0.75}}
    svg = block_shares(record_of(evaluation).blocks, ("skip", "8", "16", "full"), ident="one")
    assert "<title>layer1.1: 8 bits 75.0%</title>" in svg
    assert texts(svg).count("1.1") == 1


@pytest.mark.parametrize("narrow", [False, True])
def test_shares_say_what_they_are_of(evaluation: Tree, narrow: bool) -> None:
    blocks, options = record_of(evaluation).blocks, ("skip", "8", "16", "full")
    svg = block_shares(blocks, options, "executions", ident="one", narrow=narrow)
    assert "Share of executions" in texts(svg)
    assert 'aria-label="Share of executions that take each option' in svg
    assert "Share of images" in texts(block_shares(blocks, options, ident="one", narrow=narrow))


@pytest.mark.parametrize(("count", "narrow"), [(1, False), (1, True), (35, True), (95, False)])
def test_any_number_of_blocks(evaluation: Tree, count: int, narrow: bool) -> None:
    blocks = [record_of(evaluation).blocks[0]] * count
    check(block_shares(blocks, ("skip", "8", "16", "full"), ident="one", narrow=narrow), "one")


def test_no_entropy_no_panel(evaluation: Tree) -> None:
    for block in evaluation["blocks"]:
        del block["entropy_bits"]
    svg = block_shares(record_of(evaluation).blocks, ("skip", "8", "16", "full"), ident="one")
    assert not any("Entropy" in text for text in texts(svg))


def test_names_are_text_not_formulas_or_markup(evaluation: Tree) -> None:
    evaluation["blocks"][0]["name"] = "$x$<b>"
    evaluation["blocks"][1]["name"] = "块一"
    svg = block_shares(record_of(evaluation).blocks, ("skip", "8", "16", "full"), ident="one")
    assert "$x$<b>" in texts(svg)
    assert "块一" in texts(svg)
    assert "<b>" not in svg


def test_a_static_point_far_below_is_an_arrow_with_its_number(evaluation: Tree) -> None:
    evaluation["static"][0]["accuracy"] = 0.1
    labels = texts(accuracy_cost([("a", record_of(evaluation))], "cp", ident="one"))
    assert "8 bits: 10.0%" in labels
    assert "50%" not in [text for text in labels if text.startswith("9")]
    ticks = [float(t[:-1]) for t in labels if re.fullmatch(r"9\d(\.\d+)?%", t)]
    assert len(ticks) >= 3


@pytest.mark.parametrize("costs", [(0.0, 0.0), (0.0, 0.01), (0.05, 3.0)])
def test_cost_zero_and_beyond_the_network(evaluation: Tree, costs: tuple[float, float]) -> None:
    evaluation |= {"bitops_ratio": costs[0]}
    evaluation["static"] = evaluation["static"][:1]
    evaluation["static"][0]["bitops_ratio"] = costs[1]
    check(accuracy_cost([("a", record_of(evaluation))], "bitops_ratio", ident="one"), "one")


def test_many_networks_have_many_marks(evaluation: Tree) -> None:
    networks = [(f"net {i}", record_of(evaluation | {"cp": 0.02 * 2**i})) for i in range(5)]
    svg = accuracy_cost(networks, "cp", ident="one")
    check(svg, "one")
    assert {f"net {i}" for i in range(5)} <= set(texts(svg))


def test_one_epoch_and_no_validation(run_events: list[Tree]) -> None:
    epoch = run_events[1] | {"validation": None, "accuracy": None, "cp": None}
    svg = training_curves(run_of([run_events[0], epoch, run_events[-1]]), ident="one")
    check(svg, "one")
    assert "Loss" in texts(svg)
    assert "Accuracy" not in texts(svg)


def test_wilson_interval_holds_its_share() -> None:
    for share in (0.0, 0.5, 1.0):
        low, high = wilson_interval(share, 1)
        assert 0 <= low <= share <= high <= 1


def test_log_ticks_are_few_and_inside() -> None:
    for low, high in ((1e-4, 1.6), (0.05, 0.06), (0.6, 1.6)):
        ticks = log_ticks(low, high, 5)
        assert 1 <= len(ticks) <= 5
        assert all(low <= tick <= high for tick in ticks)
