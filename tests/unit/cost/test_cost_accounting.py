from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracskip.cost import (
    account,
    decision_entropy_bits,
    option_shares,
)
from fracskip.errors import ConfigError
from fracskip.options import OptionSet
from support.profiles import BACKBONE, NETWORK

# skip, 8, 16, full: costs 0, 1/16, 1/4, 1.
OPTIONS = OptionSet.of("paper")
ALWAYS = 1000 + 100 + 20 + 50 + 7 + 9


def same(option: int, images: int = 3) -> np.ndarray:
    return np.full((images, 2), option)


def test_skipping_everything_costs_no_cp_but_what_always_runs() -> None:
    report = account(same(0), OPTIONS, NETWORK)
    assert report.cp == 0.0
    assert report.image_cp.tolist() == [0.0] * 3
    assert report.bitops_ratio == ALWAYS / BACKBONE


def test_full_everywhere_exceeds_the_plain_network_by_the_gates_exactly() -> None:
    report = account(same(3), OPTIONS, NETWORK)
    assert report.cp == 1.0
    assert report.bitops_ratio == (BACKBONE + 16) / BACKBONE
    assert report.bitops_ratio - 1 == pytest.approx(16 / BACKBONE, rel=1e-9)


@pytest.mark.parametrize(("option", "cost"), [(1, 1 / 16), (2, 1 / 4)])
def test_one_width_everywhere(option: int, cost: float) -> None:
    report = account(same(option, 1), OPTIONS, NETWORK)
    assert report.cp == cost
    assert report.bitops_ratio == (ALWAYS + 4800 * cost) / BACKBONE


def test_a_mixture_by_hand() -> None:
    decisions = np.array([[0, 3], [1, 2], [3, 1]])
    report = account(decisions, OPTIONS, NETWORK)
    assert report.image_cp.tolist() == [0.5, 5 / 32, 17 / 32]
    # cp weighs both blocks alike; BitOps do not.
    assert report.cp == pytest.approx((0 + 1 + 1 / 16 + 1 / 4 + 1 + 1 / 16) / 6, rel=1e-12)
    branches = (3200 + (100 + 800) + (1600 + 200)) / 3
    assert report.bitops_ratio == pytest.approx((ALWAYS + branches) / BACKBONE, rel=1e-12)


def test_low_bits_are_counted_by_both_operands_widths() -> None:
    low = OptionSet.of("low")
    report = account(np.array([[1, 2]]), low, NETWORK)  # 2 and 3 bits
    assert report.cp == (4 + 9) / 1024 / 2
    bitops = 1600 * 2 * 2 + 3200 * 3 * 3 + ALWAYS * 32 * 32
    assert report.bitops_ratio == pytest.approx(bitops / (BACKBONE * 32 * 32), rel=1e-12)


def test_costs_of_a_batch_are_the_mean_of_its_images() -> None:
    rng = np.random.default_rng(0)
    decisions = rng.integers(0, 4, (50, 2))
    whole = account(decisions, OPTIONS, NETWORK)
    single = [account(row[None], OPTIONS, NETWORK) for row in decisions]
    np.testing.assert_allclose(whole.image_cp, [report.cp for report in single], rtol=1e-12)
    assert whole.cp == pytest.approx(np.mean([report.cp for report in single]))
    assert whole.bitops_ratio == pytest.approx(np.mean([one.bitops_ratio for one in single]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integer_type_will_do(dtype: type) -> None:
    decisions = np.array([[0, 3], [1, 2]], dtype)
    assert account(decisions, OPTIONS, NETWORK).cp == (1 + 1 / 16 + 1 / 4) / 4
    assert option_shares(decisions, OPTIONS).sum() == 2


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (1, 2, 1), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"do not fit: \(images, 2\) is needed"):
        account(np.zeros(shape, np.int64), OPTIONS, NETWORK)


def test_no_image_has_no_cost() -> None:
    with pytest.raises(ConfigError, match="at least one row"):
        account(np.zeros((0, 2), np.int64), OPTIONS, NETWORK)
    with pytest.raises(ConfigError, match="at least one row"):
        option_shares(np.zeros((0, 2), np.int64), OPTIONS)


@pytest.mark.parametrize("bad", [-1, 4, 100])
def test_an_index_that_is_no_option_is_refused(bad: int) -> None:
    decisions = np.array([[0, 1], [2, bad]])
    with pytest.raises(ConfigError, match="option indices from 0 to 3"):
        account(decisions, OPTIONS, NETWORK)
    with pytest.raises(ConfigError, match="option indices from 0 to 3"):
        option_shares(decisions, OPTIONS)


def test_shares_need_two_axes() -> None:
    with pytest.raises(ConfigError, match=r"\(images, blocks\) is needed"):
        option_shares(np.zeros(3, np.int64), OPTIONS)


def test_a_static_network_has_cp_of_its_only_option() -> None:
    static = OptionSet.of([8])
    assert account(np.zeros((4, 2), np.int64), static, NETWORK).cp == 1 / 16


def test_shares_by_hand() -> None:
    decisions = np.array([[0, 3], [1, 3], [0, 3], [3, 3]])
    assert option_shares(decisions, OPTIONS).tolist() == [[0.5, 0.25, 0, 0.25], [0, 0, 0, 1]]


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_shares_sum_to_one_and_entropy_is_bounded(images: int, blocks: int, seed: int) -> None:
    decisions = np.random.default_rng(seed).integers(0, 4, (images, blocks))
    shares = option_shares(decisions, OPTIONS)
    assert shares.shape == (blocks, 4)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    entropy = decision_entropy_bits(shares)
    for block in range(blocks):
        wanted = -sum(p * math.log2(p) for p in shares[block].tolist() if p)
        assert entropy[block] == pytest.approx(wanted, abs=1e-12)
    assert (entropy >= 0).all()
    assert (entropy <= 2 + 1e-12).all()


def test_entropy_by_hand() -> None:
    shares = np.array([[0, 0, 1, 0], [0.5, 0, 0, 0.5], [0.25] * 4, [0.5, 0.25, 0.25, 0]])
    entropy = decision_entropy_bits(shares)
    assert entropy.tolist() == [0.0, 1.0, 2.0, 1.5]
    assert not np.signbit(entropy).any()  # a constant block shows 0, not -0
