"""Which of several ways to set up an engine is kept."""

import time
from typing import Any

import numpy as np
import pytest

from fracskip.bench.contender import Contender
from fracskip.bench.selection import choose, first_accuracy

LABELS = np.arange(40) % 4


def candidate(name: str, micros: float, wrong: int) -> Contender:
    """Takes so long, and misclassifies so many of the images."""

    def run(given: int) -> Any:
        end = time.process_time_ns() + micros * 1e3
        while time.process_time_ns() < end:
            pass
        return np.eye(4)[[LABELS[given] if given >= wrong else (LABELS[given] + 1) % 4]]

    return Contender(
        name=name,
        engine="e",
        precision="int8",
        role="backbone",
        network="n",
        inputs=range(40),
        run=run,
        settings={"way": name},
    )


@pytest.mark.parametrize(
    ("candidates", "reference", "kept"),
    [
        ([("slow", 300, 0), ("fast", 50, 0)], 1.0, "fast"),
        ([("slow", 300, 0), ("fast but wrong", 50, 9)], 1.0, "slow"),
        ([("slow", 300, 8), ("fast", 50, 9)], 1.0, "slow"),
        ([("slow", 300, 0), ("fast but wrong", 50, 9)], None, "fast but wrong"),
        ([("slow", 300, 0), ("fast", 50, 2)], 0.95, "fast"),
    ],
)
def test_the_fastest_that_stays_accurate(
    candidates: list[tuple[str, float, int]], reference: float | None, kept: str
) -> None:
    chosen = choose([candidate(*one) for one in candidates], LABELS, reference)
    assert chosen.name == kept
    assert [row["settings"]["way"] for row in chosen.tried] == [name for name, _, _ in candidates]
    assert [row["settings"]["way"] for row in chosen.tried if row["kept"]] == [kept]
    for row in chosen.tried:
        assert set(row) == {"settings", "p50_us", "accuracy", "images", "kept"}


def test_one_candidate_is_not_measured() -> None:
    only = candidate("only", 0, 0)
    assert choose([only], LABELS) is only


def test_first_accuracy() -> None:
    assert first_accuracy(candidate("a", 0, 10), LABELS) == 0.75
