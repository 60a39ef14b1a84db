"""Weights that are rounded so that outputs change least."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fracskip.quant.fake import round_to_grid
from fracskip.quant.rounding import compensated, input_rows

BOUNDS = (-7, 7)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 6)),
        (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2, bias=False), (2, 4, 7, 6)),
        (nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=4, bias=False), (2, 4, 7, 6)),
        (nn.Conv2d(4, 6, (5, 3), padding="same", bias=False), (2, 4, 7, 6)),
        (nn.Conv2d(4, 6, 1, 2, padding="valid", bias=False), (2, 4, 7, 6)),
        (nn.Linear(4, 6, bias=False), (3, 4)),
        (nn.Linear(4, 6, bias=False), (2, 5, 3, 4)),
    ],
    ids=["conv", "strides", "depthwise", "same", "valid", "linear", "channels last"],
)
@torch.no_grad()
def test_rows_times_weights_are_the_layers_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = input_rows(layer, x)
    weight = layer.weight.reshape(len(rows), -1, rows.shape[2])
    found = (rows @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)  # (R, O)
    wanted = layer(x).movedim(1, -1) if isinstance(layer, nn.Conv2d) else layer(x)
    torch.testing.assert_close(found, wanted.reshape(-1, found.shape[1]))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 1), nn.Linear(2, 3)], ids=["conv", "linear"])
def test_of_many_places_some_are_taken_alike_each_time(layer: nn.Module) -> None:
    conv = isinstance(layer, nn.Conv2d)
    x = torch.arange(2.0 * 60 * 60).view((1, 2, 60, 60) if conv else (3600, 2))
    rows = input_rows(layer, x)
    assert rows.shape == (1, 512, 2)
    assert torch.equal(rows, input_rows(layer, x))
    assert len(rows[0].unique(dim=0)) > 400
    assert 0.4 < float((rows[0, :, 0] < rows[0, :, 0].max() / 2).float().mean()) < 0.6


def case(groups: int, outputs: int, inputs: int, mixed: bool) -> tuple[torch.Tensor, ...]:
    """Weights, rows and steps; inputs that are mixed are correlated."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(groups, outputs, inputs, generator=draw)
    rows = torch.randn(groups, 4096, inputs, generator=draw)
    if mixed:
        rows = rows @ torch.randn(groups, inputs, inputs, generator=draw) + 3
    return weight, rows, weight.abs().amax(2) / BOUNDS[1]


@pytest.mark.parametrize("shape", [(1, 5, 70), (6, 1, 9), (2, 3, 16)])
def test_outputs_of_correlated_inputs_change_less_than_by_rounding_to_the_nearest(
    shape: tuple[int, int, int],
) -> None:
    weight, rows, step = case(*shape, mixed=True)
    found = compensated(weight, rows, step, BOUNDS)
    levels = found / step[:, :, None]
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert levels.round().abs().max() <= BOUNDS[1]
    nearest = round_to_grid(weight, step[:, :, None], BOUNDS)

    def error(rounded: torch.Tensor) -> float:
        return float((rows @ (rounded - weight).transpose(1, 2)).var(1).sum())

    assert error(found) < 0.5 * error(nearest)


def test_weights_of_inputs_without_correlation_are_rounded_to_the_nearest() -> None:
    weight, _, step = case(2, 3, 4, mixed=False)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)  # their covariance is the unit
    found = compensated(weight, signs.expand(2, -1, -1), step, BOUNDS)
    torch.testing.assert_close(found, round_to_grid(weight, step[:, :, None], BOUNDS))


def test_two_inputs_by_hand() -> None:
    """Inputs that are nearly one and the same: the second weight takes the first one's error."""
    x = torch.tensor([-1.0, 1.0]).repeat(2)
    rows = torch.stack([2 * x, 2 * x], 1)[None] + torch.tensor([[[0.0, 1e-3]]])
    weight = torch.tensor([[[1.4, 2.3]]])  # 3.7 together: 1 + 3, not 1 + 2
    assert sorted(compensated(weight, rows, torch.ones(1, 1), BOUNDS).flatten().tolist()) in (
        [1, 3],
        [2, 2],
    )


def test_inputs_that_never_vary_leave_the_nearest() -> None:
    weight, _, step = case(1, 3, 4, mixed=False)
    found = compensated(weight, torch.ones(1, 8, 4), step, BOUNDS)
    torch.testing.assert_close(found, round_to_grid(weight, step[:, :, None], BOUNDS))
