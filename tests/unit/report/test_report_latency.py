"""The figure of a benchmark: who is drawn, how, and what is written."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic_records import Tree

from fracskip.report.latency import accuracy_latency


def row(role: str, network: str, p50: float, accuracy: float, **fields: Any) -> Tree:
    tree = {"role": role, "network": network, "accuracy": accuracy, "latency_us": {"p50": p50}}
    return {**tree, "engine": "native", "option": None, "precision": "int8", **fields}


NETWORK = [
    row("dynamic", "by its gates", 100.0, 0.92, precision="mixed"),
    row("forced", "all at 8 bits", 180.0, 0.921, option="8"),
    row("forced", "all skipped", 60.0, 0.5, option="skip", precision="mixed"),
    row("backbone", "resnet38", 400.0, 0.93, engine="openvino"),
    row("frontier", "resnet20", 150.0, 0.91, engine="openvino"),
]
CASCADE = [
    row("dynamic", "0 > 1 at budget 0.7", 110.0, 0.935, precision="mixed"),
    row("dynamic", "0 > 1 at budget 0.4", 80.0, 0.928),
    row("member", "lite2 224x224 alone", 150.0, 0.93),
    row("member", "lite0 192x192 alone", 60.0, 0.9, precision="mixed"),
]


def figure(rows: list[Tree]) -> ElementTree.Element:
    record = {"contenders": rows, "images": 10_000, "threads": 1}
    return ElementTree.fromstring(accuracy_latency(record))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (NETWORK, ["by its gates", "8 bits", "skip: 50.0%", "openvino int8", "resnet20"]),
        (CASCADE, [each["network"] for each in CASCADE]),
    ],
)
def test_everyone_is_named(rows: list[Tree], words: list[str]) -> None:
    root = figure(rows)
    texts = [element.text or "" for element in root.iter("text")]
    assert sorted(set(words) & set(texts)) == sorted(words)
    # Nothing else but the axes' words.
    others = sorted(set(texts) - set(words))
    axes = r"Accuracy|Latency of one image \(median\), 1 thread, log scale|[\d.]+ (µs|ms)|[\d.]+%"
    assert [text for text in others if not re.fullmatch(axes, text)] == []
    for each in rows:
        told = "skip" if each["option"] == "skip" else each["network"]
        accuracy = f"{100 * each['accuracy']:.1f}% at {each['latency_us']['p50']:.0f} µs"
        assert accuracy in root.attrib["aria-label"], told


def lines(root: ElementTree.Element) -> list[int]:
    """Of each thin line that joins points: how many it joins."""
    found = []
    for path in root.iter("path"):
        style = path.get("style", "")
        if "stroke: var(--faint)" in style and "stroke-width" not in style:
            found.append(len(re.findall("[ML]", path.get("d", ""))))
    return sorted(found)


def test_points_of_one_engine_are_joined() -> None:
    assert lines(figure(CASCADE)) == [2]
    other = [each | {"engine": "portable"} for each in CASCADE]
    assert lines(figure(CASCADE + other)) == [2, 2]
    assert lines(figure(NETWORK)) == []  # what lies below the scale is joined to nothing
    assert lines(figure([*NETWORK, row("forced", "all in full", 300.0, 0.93, option="full")])) == [
        2
    ]
