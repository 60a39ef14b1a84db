"""What the study of images computes beside the networks: ranks, and cascades by confidence."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return runpy.run_path(str(ROOT / "tools" / "study_images.py"))


def test_equal_values_share_a_rank(study: dict[str, Any]) -> None:
    assert study["ranks"](np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_correlation_of_ranks(study: dict[str, Any]) -> None:
    values = np.array([0.1, 0.5, 0.7, 2.0])
    assert study["spearman"](values, values**3) == pytest.approx(1)
    assert study["spearman"](values, -values) == pytest.approx(-1)
    assert study["spearman"](values, np.ones(4)) == 0


def test_how_well_a_score_finds_errors(study: dict[str, Any]) -> None:
    wrong = np.array([False, True, False, True])
    assert study["auc"](np.array([1.0, 3.0, 2.0, 4.0]), wrong) == 1
    assert study["auc"](np.array([4.0, 2.0, 3.0, 1.0]), wrong) == 0
    assert study["auc"](np.array([1.0, 1.0, 2.0, 2.0]), wrong) == 0.5
    assert study["auc"](np.ones(4), np.zeros(4, bool)) == 0.5


def test_confidence_is_the_largest_share(study: dict[str, Any]) -> None:
    logits = np.array([[0.0, 0.0], [np.log(9.0), 0.0], [1000.0, 0.0]], np.float32)
    assert study["confidence"](logits) == pytest.approx([0.5, 0.9, 1.0])


def test_a_cascade_runs_the_least_confident_again(study: dict[str, Any]) -> None:
    """Four images, of which the cheap network misses the first two and doubts the first."""
    labels = np.array([0, 0, 0, 0])
    weak = np.array([[0.0, 0.1], [0.0, 5.0], [1.0, 0.0], [4.0, 0.0]])
    cheap = study["Fixed"]("own, 2 bits", 0.01, weak, labels)
    dear = study["Fixed"]("own, 8 bits", 0.04, np.array([[9.0, 0.0]] * 4), labels)
    assert study["cascade"](cheap, dear, 0.01) == 0.5
    assert study["cascade"](cheap, dear, 0.02) == 0.75  # a quarter again
    assert study["cascade"](cheap, dear, 0.05) == 1.0
    assert study["cascade"](cheap, dear, 0.009) is None
    assert study["cascade"](cheap, dear, 0.06) is None
    best = study["best_cascade"]([dear, cheap], 0.02)
    assert best == {"accuracy": 0.75, "first": "own, 2 bits", "then": "own, 8 bits"}
    assert study["best_cascade"]([dear, cheap], 0.2) is None
