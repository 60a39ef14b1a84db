"""The quantiser of an int8 stream."""

from __future__ import annotations

import pytest
import torch

from fracskip.quant.stream import STREAM_BOUNDS, StreamQuantiser


def test_values_by_hand() -> None:
    stream = StreamQuantiser(2)
    with torch.no_grad():
        stream.steps.copy_(torch.tensor([0.5, 0.25]))
    x = torch.tensor([-1.0, 0.2, 0.25, 0.3, 0.75, 1.2, 1000.0])
    assert stream(x, 0).tolist() == [0, 0, 0, 0.5, 1.0, 1.0, 127.5]  # halves to even
    assert stream(x, 1).tolist() == [0, 0.25, 0.25, 0.25, 0.75, 1.25, 63.75]
    assert STREAM_BOUNDS == (0, 255)


def test_what_is_on_the_grid_stays_where_it_is() -> None:
    stream = StreamQuantiser(1)
    with torch.no_grad():
        stream.steps.fill_(0.0371)
    once = stream(torch.randn(4, 3, 5, 5) * 3, 0)
    assert torch.equal(stream(once, 0), once)


def test_gradients_pass_inside_the_grid_and_reach_the_step() -> None:
    stream = StreamQuantiser(2)
    x = torch.tensor([-3.0, 2.3, 4.0, 400.0], requires_grad=True)
    stream(x, 1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
    assert stream.steps.grad is not None
    # (rounding error inside + bound outside) / sqrt(values · 255); stage 0 had no part in it.
    wanted = (2 - 2.3 + 0 + 255) / (4 * 255) ** 0.5
    assert stream.steps.grad.tolist() == pytest.approx([0, wanted])


def test_a_step_cannot_reach_zero() -> None:
    stream = StreamQuantiser(1)
    with torch.no_grad():
        stream.steps.fill_(-1.0)
    assert stream.step(0).item() > 0
    assert stream(torch.ones(3), 0).isfinite().all()


def test_steps_start_from_all_that_flows_through_a_stage() -> None:
    stream = StreamQuantiser(2)
    torch.manual_seed(0)
    small, large = torch.rand(2000), torch.rand(2000) * 8
    stream.observe([[small], [small, large]])
    first, second = stream.steps.tolist()
    assert first == pytest.approx(1 / 255, rel=0.05)
    assert second == pytest.approx(8 / 255, rel=0.05)
