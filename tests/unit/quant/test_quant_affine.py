from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fracskip.errors import ConfigError
from fracskip.quant.affine import (
    TINY_SCALE,
    IntegerGrid,
    affine_parameters,
    dequantise,
    quantise,
)

widths = st.integers(2, 16)
values = st.floats(-(2.0**40), 2.0**40, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 20), elements=values)
scales = st.floats(2.0**-20, 2.0**20, width=32)


def test_a_grid_spans_its_integers() -> None:
    for bits in range(2, 17):
        assert IntegerGrid(bits, signed=True).bounds == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        assert IntegerGrid(bits, signed=False).bounds == (0, 2**bits - 1)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 32])
def test_a_grid_of_another_width_is_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"grid of {bits} bits is unknown: use 2 to 16"):
        IntegerGrid(bits, signed=True)
    with pytest.raises(ConfigError, match="2 to 16"):
        affine_parameters(-1.0, 1.0, bits)


def test_quantise_rounds_half_to_even_and_clips() -> None:
    x = [-1e9, -7.5, -2.5, -1.5, -0.5, -0.0, 0.0, 0.25, 0.5, 1.5, 2.5, 6.5, 7.49, 7.5, 1e9]
    symmetric = quantise(x, 1.0, 0, (-7, 7))
    assert symmetric.tolist() == [-7, -7, -2, -2, 0, 0, 0, 0, 0, 2, 2, 6, 7, 7, 7]
    assert symmetric.dtype == np.int32
    shifted = quantise(x, 1.0, 8, (0, 15))
    assert shifted.tolist() == [0, 0, 6, 6, 8, 8, 8, 8, 8, 10, 10, 14, 15, 15, 15]


def test_the_reciprocal_is_rounded_before_the_product() -> None:
    # At 10.5 steps the last bit decides; dividing by the scale rounds some of these otherwise.
    found = []
    for scale in np.float32(np.random.default_rng(0).uniform(0.01, 0.1, 4000)):
        x = np.float32(10.5) * scale
        by_reciprocal = int(np.rint(x * (np.float32(1) / scale)))
        by_division = int(np.rint(x / scale))
        assert quantise([x], scale, 0, (0, 255)).tolist() == [by_reciprocal]
        found.append(by_reciprocal != by_division)
    assert any(found)


def test_a_scale_for_each_row_broadcasts() -> None:
    x = np.float32([[1.0, 2.0], [1.0, 2.0]])
    scales = np.float32([[1.0], [0.5]])
    q = quantise(x, scales, 0, (-3, 3))
    assert q.tolist() == [[1, 2], [2, 3]]
    assert dequantise(q, scales, 0).tolist() == [[1.0, 2.0], [1.0, 1.5]]


@settings(deadline=None)
@given(arrays, scales, widths, st.booleans(), st.data())
def test_integers_stay_in_bounds_and_read_back(
    x: np.ndarray, scale: float, bits: int, signed: bool, data: st.DataObject
) -> None:
    bounds = IntegerGrid(bits, signed).bounds
    zero_point = 0 if signed else data.draw(st.integers(*bounds))
    q = quantise(x, scale, zero_point, bounds)
    assert q.min() >= bounds[0]
    assert q.max() <= bounds[1]
    # Every integer that was not clipped is the nearest one, up to single precision.
    inside = (q > bounds[0]) & (q < bounds[1])
    error = np.abs(dequantise(q, scale, zero_point).astype(np.float64) - x)[inside]
    assert (error <= scale * (0.5 + 2.0**-6)).all()
    # Quantising what an integer stands for gives the integer again, and the same number.
    again = quantise(dequantise(q, scale, zero_point), scale, zero_point, bounds)
    np.testing.assert_array_equal(again, q)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), widths, st.booleans())
def test_every_integer_of_a_grid_survives_the_round_trip(
    seed: int, bits: int, signed: bool
) -> None:
    bounds = IntegerGrid(bits, signed).bounds
    rng = np.random.default_rng(seed)
    q = np.unique(np.append(rng.integers(bounds[0], bounds[1] + 1, 200), bounds))
    scale = np.float32(rng.uniform(1e-6, 10))
    zero_point = 0 if signed else int(rng.integers(bounds[0], bounds[1] + 1))
    back = quantise(dequantise(q, scale, zero_point), scale, zero_point, bounds)
    np.testing.assert_array_equal(back, q)


def test_quantise_keeps_order() -> None:
    x = np.linspace(-3, 3, 1001, dtype=np.float32)
    q = quantise(x, 0.05, 0, (-31, 31))
    assert (np.diff(q) >= 0).all()
    assert set(q.tolist()) == set(range(-31, 32))


@settings(deadline=None)
@given(values, values, widths)
def test_an_affine_grid_holds_zero_exactly_and_covers_the_range(
    a: float, b: float, bits: int
) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = affine_parameters(low, high, bits)
    q_max = 2**bits - 1
    assert isinstance(scale, np.float32)
    assert scale > 0
    assert 0 <= zero_point <= q_max
    zero = quantise([0.0], scale, zero_point, (0, q_max))
    assert zero.tolist() == [zero_point]
    assert dequantise(zero, scale, zero_point).tolist() == [0.0]
    if scale > TINY_SCALE:
        ends = np.float32([min(low, 0), max(high, 0)])
        back = dequantise(quantise(ends, scale, zero_point, (0, q_max)), scale, zero_point)
        # The zero point is rounded, so an end may lie half a step outside of the grid.
        assert (np.abs(back.astype(np.float64) - ends) <= float(scale) * 0.51).all()


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero_point"),
    [
        (0.0, 255.0, 8, 1.0, 0),
        (-128.0, 127.0, 8, 1.0, 128),
        (-255.0, 0.0, 8, 1.0, 255),
        (3.0, 15.0, 4, 1.0, 0),  # 0 belongs to every range
        (-15.0, -3.0, 4, 1.0, 15),
        (-1.0, 2.0, 2, 1.0, 1),
        (-0.5, 1.0, 2, 0.5, 1),
    ],
)
def test_affine_parameters_by_hand(
    low: float, high: float, bits: int, scale: float, zero_point: int
) -> None:
    assert affine_parameters(low, high, bits) == (scale, zero_point)


def test_a_tensor_of_zeros_has_a_harmless_grid() -> None:
    for bits in (2, 8, 16):
        scale, zero_point = affine_parameters(0.0, 0.0, bits)
        assert (scale, zero_point) == (TINY_SCALE, 0)
        zeros = np.zeros(5, np.float32)
        q = quantise(zeros, scale, zero_point, (0, 2**bits - 1))
        assert q.tolist() == [0] * 5
        assert dequantise(q, scale, zero_point).tolist() == [0.0] * 5
