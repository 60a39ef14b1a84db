"""The NumPy reference and torch's fake quantisation: the same values, elementwise and exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from fracskip.options import Option, OptionSet
from fracskip.quant.affine import IntegerGrid, affine_parameters, dequantise, quantise
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.fake import fake_quantise, fake_quantise_affine, round_to_grid

widths = st.integers(2, 16)
scales = st.floats(2.0**-20, 2.0**20, width=32)
finite = st.floats(-(2.0**60), 2.0**60, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 30), elements=finite)


def same(found: torch.Tensor, wanted: np.ndarray) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.detach().numpy(), wanted)


@settings(deadline=None)
@given(arrays, scales, widths, st.booleans())
@example(np.float32([-0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5]), 1.0, 8, True)
@example(np.float32([-0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.5, 1e18]), 1.0, 8, False)
def test_symmetric_grids_agree(x: np.ndarray, scale: float, bits: int, signed: bool) -> None:
    bounds = IntegerGrid(bits, signed).bounds
    wanted = dequantise(quantise(x, scale, 0, bounds), scale, 0)
    step = torch.tensor([scale], dtype=torch.float32)
    same(round_to_grid(torch.from_numpy(x), step, bounds), wanted)
    same(fake_quantise(torch.from_numpy(x), step, bounds), wanted)


@settings(deadline=None)
@given(arrays, scales, widths, st.data())
def test_affine_grids_agree(x: np.ndarray, scale: float, bits: int, data: st.DataObject) -> None:
    bounds = IntegerGrid(bits, signed=False).bounds
    zero_point = data.draw(st.integers(*bounds))
    wanted = dequantise(quantise(x, scale, zero_point, bounds), scale, zero_point)
    step = torch.tensor(scale, dtype=torch.float32)
    same(round_to_grid(torch.from_numpy(x), step, bounds, zero_point), wanted)
    same(fake_quantise_affine(torch.from_numpy(x), step, zero_point, bounds), wanted)


@settings(deadline=None)
@given(st.integers(-40000, 70000), st.integers(-18, 18), widths, st.booleans())
def test_ties_round_to_even_in_both(whole: int, power: int, bits: int, signed: bool) -> None:
    bounds = IntegerGrid(bits, signed).bounds
    scale = 2.0**power  # a power of two: halves are exact, so every value below is a true tie
    x = np.float32([(whole + 0.5) * scale])
    even = whole if whole % 2 == 0 else whole + 1
    integer = min(max(even, bounds[0]), bounds[1])
    assert quantise(x, scale, 0, bounds).tolist() == [integer]
    same(round_to_grid(torch.from_numpy(x), torch.tensor(scale), bounds), x * 0 + integer * scale)


@pytest.mark.parametrize("bits", range(2, 17))
def test_a_step_per_channel_agrees(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 0.3, (6, 4, 3, 3)).astype(np.float32)
    steps = rng.uniform(0.3, 2, (6, 1, 1, 1)).astype(np.float32) / np.float32(2**bits)
    bounds = IntegerGrid(bits, signed=True).bounds
    wanted = dequantise(quantise(weight, steps, 0, bounds), steps, 0)
    assert len(np.unique(quantise(weight, steps, 0, bounds))) > 2
    same(round_to_grid(torch.from_numpy(weight), torch.from_numpy(steps), bounds), wanted)
    flat = torch.from_numpy(weight).contiguous(memory_format=torch.channels_last)
    found = round_to_grid(flat, torch.from_numpy(steps), bounds)
    assert found.is_contiguous(memory_format=torch.channels_last)
    same(found, wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 12, 16])
@pytest.mark.parametrize(("stride", "scheme"), [(1, "lsq"), (2, "lsq"), (2, "paper")])
def test_a_quantised_convolution_is_that_of_the_references_integers(
    bits: int, stride: int, scheme: str
) -> None:
    torch.manual_seed(bits)
    option = Option(bits)
    conv = FractionalConv2d.of(
        torch.nn.Conv2d(5, 7, 3, stride, 1, bias=False), OptionSet((option,)), scheme
    ).eval()
    x = torch.randn(3, 5, 9, 8)
    x = x.relu() if scheme == "lsq" else x
    conv.observe(x, option)
    weight = conv.weight.detach().numpy()
    if scheme == "lsq":
        a_scale = conv.quantiser.activation_step.detach().numpy()[0, 0]
        w_scale = conv.quantiser.weight_step.detach().numpy()[0][:, None, None, None]
        a_bounds, w_bounds = IntegerGrid(bits, False).bounds, IntegerGrid(bits, True).bounds
        a_zero = w_zero = 0
    else:
        a_scale, a_zero = affine_parameters(float(x.min()), float(x.max()), bits)
        w_scale, w_zero = affine_parameters(float(weight.min()), float(weight.max()), bits)
        a_bounds = w_bounds = IntegerGrid(bits, False).bounds
    a_hat = dequantise(quantise(x.numpy(), a_scale, a_zero, a_bounds), a_scale, a_zero)
    w_hat = dequantise(quantise(weight, w_scale, w_zero, w_bounds), w_scale, w_zero)
    wanted = F.conv2d(torch.from_numpy(a_hat), torch.from_numpy(w_hat), None, stride, 1)
    same(conv.execute(x, option), wanted.numpy())

    # The integers themselves, accumulated without rounding, stand for the same result.
    a_int = quantise(x.numpy(), a_scale, a_zero, a_bounds).astype(np.float64) - a_zero
    w_int = quantise(weight, w_scale, w_zero, w_bounds).astype(np.float64) - w_zero
    sums = F.conv2d(torch.from_numpy(a_int), torch.from_numpy(w_int), None, stride, 1)
    scale = torch.from_numpy(np.asarray(w_scale, np.float64).reshape(-1, 1, 1)) * float(a_scale)
    torch.testing.assert_close(sums * scale, wanted.double(), rtol=1e-5, atol=1e-5)
