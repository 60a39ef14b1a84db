from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fracskip.options import OptionSet
from fracskip.quant.affine import IntegerGrid
from fracskip.quant.fake import round_to_grid
from fracskip.quant.observer import best_grid, best_step, update_range
from fracskip.quant.quantisers import SAMPLE_VALUES, LsqQuantiser, thinned


def test_the_first_range_is_the_values_own() -> None:
    running = torch.full((2,), torch.nan)
    update_range(running, torch.tensor([[3.0, -1.0], [0.5, 2.0]]), 0.9)
    assert running.tolist() == [-1.0, 3.0]


def test_nine_tenths_of_the_old_range_are_kept() -> None:
    running = torch.tensor([-1.0, 3.0])
    update_range(running, torch.tensor([-11.0, 0.0, 13.0]), 0.9)
    torch.testing.assert_close(running, torch.tensor([-2.0, 4.0]))
    update_range(running, torch.tensor([8.0]), 0.9)
    torch.testing.assert_close(running, torch.tensor([-1.0, 4.4]))


def test_an_update_needs_no_gradient_and_leaves_none() -> None:
    running = torch.tensor([0.0, 1.0])
    update_range(running, torch.randn(4, requires_grad=True) * 2, 0.5)
    assert not running.requires_grad


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.booleans())
def test_the_best_step_is_no_worse_than_the_largest_magnitudes(
    seed: int, bits: int, signed: bool
) -> None:
    bounds = IntegerGrid(bits, signed).bounds
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 64, generator=generator) * torch.tensor([[0.01], [1.0], [30.0]])
    rows = rows if signed else rows.relu()
    steps = best_step(rows, bounds)
    assert steps.shape == (3, 1)
    assert (steps > 0).all()

    def error(step: torch.Tensor) -> torch.Tensor:
        return (rows - round_to_grid(rows, step, bounds)).square().mean(1)

    widest = rows.abs().amax(1, keepdim=True) / bounds[1]
    # Single precision may see two candidates of equal error in another order.
    assert (error(steps) <= error(widest) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_at_few_bits_the_best_step_clips_a_gaussian(bits: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(1, 4096)
    bounds = IntegerGrid(bits, signed=True).bounds
    step, widest = best_step(rows, bounds), rows.abs().amax(1, keepdim=True) / bounds[1]
    errors = [
        float((rows - round_to_grid(rows, s, bounds)).square().mean()) for s in (step, widest)
    ]
    assert float(step) < 0.8 * float(widest)
    assert errors[0] < 0.9 * errors[1]


def test_values_on_a_grid_find_it() -> None:
    rows = torch.arange(-7.0, 8.0)[None] * 0.125
    assert best_step(rows, (-7, 7)).tolist() == [[0.125]]


def test_an_unsigned_step_does_not_look_at_negative_values() -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0, -100.0]])
    assert best_step(rows, (0, 3)).tolist() == [[1.0]]


def test_a_row_of_zeros_gets_a_harmless_positive_step() -> None:
    steps = best_step(torch.stack([torch.zeros(8), torch.ones(8)]), (-127, 127))
    assert (steps > 0).all()
    assert float(steps[0]) < 1e-9
    assert round_to_grid(torch.zeros(8), steps[0], (-127, 127)).tolist() == [0.0] * 8


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.5, 3.0])
def test_the_best_grid_is_no_worse_than_the_values_range(shift: float) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) + shift
    step, zero = best_grid(values, 15)
    assert 0 <= zero <= 15
    low, high = values.min().clamp_max(0), values.max()
    widest = (high - low) / 15

    def error(step: torch.Tensor) -> float:
        return float((round_to_grid(values, step, (-zero, 15 - zero)) - values).square().mean())

    assert error(step) < 0.9 * error(widest)  # the tails are worth less than finer steps


def test_the_best_grid_of_values_on_one_is_that_one() -> None:
    values = torch.arange(-5, 11) * 0.25
    step, zero = best_grid(values, 15)
    assert (float(step), zero) == (0.25, 5)
    assert best_grid(-values.abs(), 15)[1] == 15


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (32, 24, 56, 56), (7, 3), (1 << 18,)])
def test_thinned_values_come_from_all_columns_alike(shape: tuple[int, ...]) -> None:
    columns = torch.arange(float(shape[-1])).expand(shape)
    found = thinned(columns)
    assert min(columns.numel(), SAMPLE_VALUES) * 0.6 < len(found) <= SAMPLE_VALUES * 1.5
    if columns.numel() <= SAMPLE_VALUES:
        assert torch.equal(found, columns.flatten())
    counts = found.long().bincount(minlength=shape[-1]) if shape[-1] < 100 else torch.ones(1)
    assert counts.max() <= counts.min() + 1


@pytest.mark.parametrize("signed", [False, True])
def test_at_16_bits_no_value_clips(signed: bool) -> None:
    """Also one that a sample of them does not hold."""
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    values[12_345], values[54_321] = 40.0, -30.0
    values = values if signed else values.relu()
    quantiser = LsqQuantiser(OptionSet.of([16]), out_channels=1, signed_in=signed)
    quantiser.observe(values, None, 0)
    found = quantiser.activation(values, 0).detach()
    assert float((found - values).abs().max()) < 70 / 65_535
