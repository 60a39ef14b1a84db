"""Cascades in the report: their record, figure, table and sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic_records import Tree, make_cascade, make_evaluation

from fracskip.errors import DataError
from fracskip.report import write_report
from fracskip.report.cascade_records import CascadeRecord
from fracskip.report.cascade_view import Cascaded
from fracskip.report.cascades import cascade_accuracy
from fracskip.report.reading import load_record


def written(tmp_path: Path, *trees: Tree) -> str:
    paths = []
    for number, tree in enumerate(trees):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(tree))
    return write_report(paths, tmp_path / "report.html").read_text()


def record_of(tree: Tree) -> CascadeRecord:
    return CascadeRecord.model_validate(tree)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def without_chains(tree: Tree) -> Tree:
    """The same record with the first and the last member alone as its operating points."""
    last = tree["members"][2]
    alone = {key: last[key] for key in ("accuracy", "accuracy_95", "latency_us", "cost")}
    of = {"budget": 1.0, "chain": [2], "thresholds": [], "rates": [1.0], "bitops_ratio": 0.06}
    tree["points"] = [tree["points"][0], alone | of]
    return tree


# -- the record -----------------------------------------------------------------------------------


def test_a_cascade_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(make_cascade() | {"later": 1}))
    record = load_record(tmp_path / "x.json")
    assert isinstance(record, CascadeRecord)
    assert record.digest == f"sha256:{7:064x}"
    assert [member.words for member in record.members] == [
        "lite0 160x192, budget 50.0%",
        "lite1 192x192",
        "lite2 224x192",
    ]
    assert [point.chain for point in record.points] == [(0,), (0, 2), (0, 1, 2), (0, 2)]
    assert [point.random_escalation for point in record.points] == [
        None,
        *(pytest.approx(value - 0.021) for value in (0.913, 0.92, 0.931)),
    ]


BAD: list[tuple[tuple[Any, ...], Any, str]] = [
    (("score",), "largest", "score: Input should be 'probability', 'margin' or 'entropy'"),
    (("checkpoint_digest",), "sha256:other", "must be the same"),
    (("members", 2), ..., "the last member's cost must be 1, the unit; it is 0.4667"),
    (("members", 0, "cost"), 0.0, "members.0.cost: Input should be greater than 0"),
    (("members", 0, "cost"), 0.5, "cost of points.0 must be 0.5, its rates times its members'"),
    (("members", 0, "image"), [160], "members.0.image.1"),
    (("members", 0, "image"), [0, 192], "members.0.image.0"),
    (("members", 0, "options"), ["9bit"], "option '9bit' is unknown"),
    (("members", 0, "budget"), 0.0, "members.0.budget: Input should be greater than 0"),
    (("members", 1, "accuracy"), 0.95, "members.1: accuracy must lie in accuracy_95, 0.9001 to"),
    (("members", 1, "accuracy_95"), [0.92, 0.9], "members.1.accuracy_95: an interval ends"),
    (("members", 1, "latency_us", "mean"), 0.0, "members.1.latency_us.mean: Input should be gr"),
    (("members", 1, "latency_us", "p50"), 200.0, "p50 may be at most p99, 119; it is 200"),
    (("points",), [], "points"),
    (("points", 1, "chain"), [0, 3], "points.1 names member 3; there are 3, counted from 0"),
    (("points", 1, "chain"), [2, 0], "points.1: a chain's members must ascend"),
    (("points", 1, "chain"), [0, 0], "points.1: a chain's members must ascend"),
    (("points", 1, "chain"), [-1, 0], "points.1.chain.0"),
    (("points", 1, "chain"), [], "points.1.chain"),
    (("points", 1, "rates"), [1.0], "points.1: a chain needs a rate for each member"),
    (("points", 1, "rates"), [0.9, 0.2], "points.1: a chain's rates must begin with 1"),
    (("points", 2, "rates"), [1.0, 0.1, 0.2], "points.2: a chain's rates must begin with 1"),
    (("points", 1, "rates"), [1.0, 0.3], "cost of points.1 must be 0.5667"),
    (("points", 1, "thresholds"), [], "points.1: a chain needs a rate for each member and a thr"),
    (("points", 1, "random_escalation"), ..., "points.1: random_escalation is for chains of sev"),
    (("points", 0, "random_escalation"), 0.5, "points.0: random_escalation is for chains of sev"),
    (("points", 1, "accuracy"), float("nan"), "points.1.accuracy: Input should be a finite"),
    (("seconds",), ..., "seconds is missing"),
    (("device",), "", "device"),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD)
def test_malformed_cascades(
    tmp_path: Path, where: tuple[Any, ...], value: Any, message: str
) -> None:
    tree: Any = make_cascade()
    node = tree
    for key in where[:-1]:
        node = node[key]
    if value is ...:
        del node[where[-1]]
    else:
        node[where[-1]] = value
    with pytest.raises(DataError) as caught:
        written(tmp_path, tree)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the figure -----------------------------------------------------------------------------------


def test_the_figure_says_what_is_drawn() -> None:
    svg = cascade_accuracy(record_of(make_cascade()), ident="one")
    shown = [
        "lite0 160x192, budget 50.0% alone: 88.1% in 40 µs",
        "lite1 192x192 alone: 90.6% in 70 µs",
        "lite2 224x192 alone: 92.8% in 150 µs",
        "0: 88.1% in 40 µs",
        "0 &gt; 2: 91.3% in 70 µs",
        "0 &gt; 1 &gt; 2: 92.0% in 86 µs",
        "0 &gt; 2: 93.1% in 108 µs",
        "0 &gt; 2, escalated at random: 89.2% in 70 µs",
        "0 &gt; 1 &gt; 2, escalated at random: 89.9% in 86 µs",
        "0 &gt; 2, escalated at random: 91.0% in 108 µs",
    ]
    assert f'aria-label="Accuracy over mean latency of an image. {"; ".join(shown)}"' in svg
    assert sorted(re.findall(r"<title>([^<]+)</title>", svg)) == sorted(shown)
    labels = {"lite0 160x192, budget 50.0%", "lite1 192x192", "lite2 224x192"}
    assert labels | {"operating points", "escalated at random"} <= set(texts(svg))


@pytest.mark.parametrize(
    ("times", "label"),
    [
        ((40.0, 70.0, 200.0), "Mean latency of an image"),
        ((39.0, 70.0, 200.0), "Mean latency of an image, log scale"),
        ((40.0, 40.0, 40.0), "Mean latency of an image"),
    ],
)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_wide_range_of_times_has_a_logarithmic_axis(
    times: tuple[float, ...], label: str, narrow: bool
) -> None:
    tree = without_chains(make_cascade(times=times))
    shown = texts(cascade_accuracy(record_of(tree), ident="one", narrow=narrow))
    assert label in shown
    ticks = [text for text in shown if text.endswith(" µs")]
    assert 2 <= len(ticks) == len(set(ticks)) <= (5 if narrow else 7)


def test_what_lies_far_below_is_an_arrow_with_its_number() -> None:
    tree = make_cascade(accuracies=(0.881, 0.7, 0.928))
    shown = texts(cascade_accuracy(record_of(tree), ident="one"))
    assert "lite1 192x192: 70.0%" in shown
    assert "70%" not in shown


# -- the page -------------------------------------------------------------------------------------


def cells(page: str) -> list[list[str]]:
    """The rows of the first table, without its groups' titles."""
    body = page[page.index("<table") : page.index("</table>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.split("<tr>", body)[1:]]
    return [row for row in rows if len(row) > 1]


def test_the_first_section_is_the_cascade(tmp_path: Path) -> None:
    page = written(tmp_path, make_evaluation(blocks=2, examples=1), make_cascade())
    assert re.findall(r'<section id="([^"]+)"', page)[:2] == ["cascade-1", "results"]
    assert "2 evaluations compared" in page
    assert page.index("<strong>photos</strong>") < page.index("<strong>bundled</strong>")
    assert "fracskip report: photos and bundled" in page
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers)


def test_one_cascade_is_the_title(tmp_path: Path) -> None:
    page = written(tmp_path, make_cascade())
    assert re.search(
        r"<h1>93\.10% of 10,000 folder test images right in 108 µs an image; its last member "
        r"alone: 92\.80% in 150 µs\.<sup",
        page,
    )
    assert page.count("its last member alone") == 1
    assert cells(page) == [
        ["Chain", "Escalated", "Cost", "µs mean", "µs p99", "Accuracy", "At random"],
        ["0: lite0 160x192, budget 50.0%", "", "26.7%", "40.0", "68.0", "88.10% ± 0.63", ""],
        ["1: lite1 192x192", "", "46.7%", "70.0", "119", "90.60% ± 0.57", ""],
        ["2: lite2 224x192", "", "100%", "150", "255", "92.80% ± 0.51", ""],
        ["0", "", "26.7%", "40.0", "68.0", "88.10% ± 0.63", ""],
        ["0 &gt; 2", "20.0%", "46.7%", "70.0", "119", "91.30% ± 0.55", "89.20%"],
        ["0 &gt; 1 &gt; 2", "40.0% &gt; 12.0%", "57.3%", "86.0", "146", "92.00% ± 0.53", "89.90%"],
        ["0 &gt; 2", "45.0%", "71.7%", "108", "183", "93.10% ± 0.50", "91.00%"],
    ]
    assert "a cascade of 3 members at 4 operating points" in page
    assert "photos (lite0 &gt; lite2; probability score)" in page
    assert "On 1 thread of a processor, native engine (avx2)." in page


def test_a_section_for_each_record(tmp_path: Path) -> None:
    page = written(tmp_path, make_cascade(), make_cascade(images=4000))
    assert re.findall(r'<section id="(cascade[^"]+)"', page) == ["cascade-1", "cascade-2"]
    assert re.findall(r"<h2[^>]*>(Cascade [^<]+)</h2>", page) == [
        "Cascade photos [1]",
        "Cascade photos [2]",
    ]
    # Once at the top and once in its section.
    assert page.count("93.1% of 4,000 folder test images right in 108 µs an image") == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    tree = make_cascade(name="<b>&")
    tree["members"][0]["name"] = "<i>$x$"
    page = written(tmp_path, tree)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "0: &lt;i&gt;$x$ 160x192" in page


def test_the_fastest_of_equals_is_told() -> None:
    tree = make_cascade()
    tree["points"][1] |= {key: tree["points"][3][key] for key in ("accuracy", "accuracy_95")}
    item = Cascaded("photos", record_of(tree), (1,))
    assert item.sentence.startswith("93.10% of 10,000 folder test images right in 70 µs an image;")


def test_no_chain_is_more_accurate_than_the_last_member() -> None:
    item = Cascaded("photos", record_of(without_chains(make_cascade())), (1,))
    assert item.sentence == (
        "92.80% of 10,000 folder test images right in 150 µs an image by the last member alone, "
        "the most accurate operating point on record."
    )
