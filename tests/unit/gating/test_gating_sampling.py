from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fracskip.gating import first_minimum, gumbel_like, straight_through


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([-math.inf, 2.0, -1.0, 2.0], 1),
        ([1.0, 2.0, 3.0, 3.0], 2),
        ([5.0, 1.0, 1.0, 5.0], 0),
        ([math.inf, 1.0, math.inf, 0.0], 0),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([0.0, 1.0, 2.0, 4.0], 3),
    ],
)
def test_the_first_minimum_wins(row: list[float], first: int) -> None:
    choice = first_minimum(-torch.tensor([row]))
    assert choice.tolist() == [first]
    assert choice.dtype == torch.int64


def test_many_ties_in_a_large_batch() -> None:
    # Wide enough that a vectorised reduction could return any of the minima.
    logits = torch.zeros(1000, 7)
    logits[:, 2:] = 1.0
    assert first_minimum(-logits).tolist() == [2] * 1000


def test_one_image_one_option_and_none() -> None:
    assert first_minimum(torch.tensor([[-3.0]])).tolist() == [0]
    assert first_minimum(torch.zeros(5, 1)).tolist() == [0] * 5
    assert first_minimum(torch.zeros(0, 4)).tolist() == []


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=6))
def test_choices_are_pythons_first_minima(rows: list[list[int]]) -> None:
    wanted = [row.index(min(row)) for row in rows]
    for dtype in (torch.float32, torch.bfloat16):
        assert first_minimum(torch.tensor(rows, dtype=dtype)).tolist() == wanted


def test_straight_through_is_one_hot_with_the_softmaxs_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, requires_grad=True)
    choice = torch.tensor([0, 1, 2, 3, 3, 0])
    upstream = torch.randn(6, 4)
    weights = straight_through(logits.softmax(-1), choice)
    assert weights.tolist() == torch.eye(4)[choice].tolist()
    weights.backward(upstream)
    twin = logits.detach().clone().requires_grad_()
    twin.softmax(-1).backward(upstream)
    assert logits.grad is not None
    assert twin.grad is not None
    assert torch.equal(logits.grad, twin.grad)
    assert (logits.grad != 0).all()


def test_straight_through_of_one_option_is_one() -> None:
    logits = torch.zeros(3, 1, requires_grad=True)
    assert straight_through(logits.softmax(-1), first_minimum(-logits)).tolist() == [[1.0]] * 3


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_straight_through_is_exactly_one_hot(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (torch.randn(8, 5, generator=generator) * 20).softmax(-1)
    choice = torch.randint(0, 5, (8,), generator=generator)
    assert torch.equal(straight_through(probabilities, choice), torch.eye(5)[choice])


def test_noise_follows_its_generator() -> None:
    logits = torch.randn(50, 4)
    noise = [gumbel_like(logits, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert noise[0].shape == logits.shape
    generator = torch.Generator().manual_seed(3)
    gumbel_like(logits, generator)
    assert not torch.equal(gumbel_like(logits, generator), noise[0])  # it moves on


def test_noise_is_gumbel_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = gumbel_like(torch.zeros(200_000, 1), torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    for extreme in (torch.zeros, torch.ones):
        monkeypatch.setattr(torch, "rand", lambda shape, make=extreme, **_: make(shape))
        assert gumbel_like(torch.zeros(2, 2)).isfinite().all()


def test_noise_makes_the_first_minimum_a_sample() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(60_000, 3)
    noisy = -logits - gumbel_like(logits, torch.Generator().manual_seed(1))
    shares = torch.bincount(first_minimum(noisy), minlength=3) / 60_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), rtol=0, atol=0.01)
