"""The committed integers: held against an independent slow reference, NumPy and torch."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from slow_integers import FILE, cases

from fracskip.quant.affine import IntegerGrid, affine_parameters, dequantise, quantise
from fracskip.quant.fake import round_to_grid

GOLDEN: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
each_case = pytest.mark.parametrize(
    "case", GOLDEN, ids=[f"{case['kind']}-{case['bits']}" for case in GOLDEN]
)


def singles(texts: list[str]) -> np.ndarray:
    return np.array([float.fromhex(text) for text in texts], np.float32)


def test_the_slow_reference_still_gives_the_committed_integers() -> None:
    assert cases() == GOLDEN
    assert {case["bits"] for case in GOLDEN} == {2, 3, 4, 8, 12, 16}


@each_case
def test_numpy_gives_the_golden_integers(case: dict[str, Any]) -> None:
    scale, bounds = np.float32(float.fromhex(case["scale"])), tuple(case["bounds"])
    values = singles(case["values"])
    assert IntegerGrid(case["bits"], case["kind"] == "signed").bounds == bounds
    integers = quantise(values, scale, case["zero_point"], bounds)
    assert integers.tolist() == case["integers"]


@each_case
def test_torch_gives_the_golden_integers_times_the_scale(case: dict[str, Any]) -> None:
    scale, bounds = np.float32(float.fromhex(case["scale"])), tuple(case["bounds"])
    grid = round_to_grid(
        torch.from_numpy(singles(case["values"])),
        torch.tensor(scale),
        bounds,
        case["zero_point"],
    )
    wanted = [
        np.float32(Fraction(float(scale)) * (integer - case["zero_point"]))
        for integer in case["integers"]
    ]
    assert grid.tolist() == [float(value) for value in wanted]
    assert dequantise(case["integers"], scale, case["zero_point"]).tolist() == grid.tolist()


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["kind"] == "affine"])
def test_affine_parameters_are_the_golden_ones(case: dict[str, Any]) -> None:
    seen = singles(case["values"])[:24]
    scale, zero_point = affine_parameters(float(seen.min()), float(seen.max()), case["bits"])
    assert float(scale).hex() == case["scale"]
    assert zero_point == case["zero_point"]
