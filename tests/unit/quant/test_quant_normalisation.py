from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fracskip.options import Option, OptionSet
from fracskip.quant.normalisation import FractionalBatchNorm2d

OPTIONS = OptionSet.of(["skip", 4, 8, "full"])
EXECUTED = [Option(4), Option(8), Option(32)]


@pytest.fixture
def plain() -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(5, eps=1e-3)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_()
        norm.running_var.uniform_(0.2, 4)
    return norm.eval()


def apply(norm: FractionalBatchNorm2d, z: torch.Tensor, option: Option) -> torch.Tensor:
    gain, offset = norm.folded(option)
    return z * gain[:, None, None] + offset[:, None, None]


@pytest.mark.parametrize("shared", [False, True])
def test_folded_terms_are_batchnorms_evaluation(plain: nn.BatchNorm2d, shared: bool) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared)
    z = torch.randn(3, 5, 4, 6)
    for option in EXECUTED:
        torch.testing.assert_close(apply(norm, z, option), plain(z), rtol=1e-5, atol=1e-5)


def test_the_plain_norms_names_and_values_survive(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    state = norm.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value)
    own = {"option_weight", "option_bias", "option_mean", "option_var"}
    assert state.keys() - plain.state_dict().keys() == own
    assert {tuple(state[name].shape) for name in own} == {(2, 5)}
    assert {name for name, _ in norm.named_parameters()} == {
        "weight",
        "bias",
        "option_weight",
        "option_bias",
    }


@pytest.mark.parametrize(
    ("options", "shared", "rows"),
    [
        ("paper", False, 2),
        ("paper", True, 0),
        ("low", False, 4),
        ("low", True, 0),
        (["full"], False, 0),
        ([8], False, 0),
        (["skip", "full"], False, 0),
    ],
)
def test_options_below_the_top_have_rows_unless_they_share(
    plain: nn.BatchNorm2d, options: str | list[str], shared: bool, rows: int
) -> None:
    norm = FractionalBatchNorm2d.of(plain, OptionSet.of(options), shared)
    assert norm.option_weight.shape == norm.option_mean.shape == (rows, 5)


def test_a_row_serves_its_option_alone(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    before = [norm.folded(option) for option in EXECUTED]
    for row, name in enumerate(("option_weight", "option_bias", "option_mean", "option_var")):
        for index in (0, 1):
            with torch.no_grad():
                getattr(norm, name)[index] += 0.5 + row
            after = [norm.folded(option) for option in EXECUTED]
            changed = [
                not (torch.equal(new[0], old[0]) and torch.equal(new[1], old[1]))
                for new, old in zip(after, before, strict=True)
            ]
            assert changed == [index == 0, index == 1, False]
            before = after
    with torch.no_grad():
        norm.running_mean += 1
    assert torch.equal(norm.folded(Option(4))[1], before[0][1])
    assert not torch.equal(norm.folded(Option(32))[1], before[2][1])


def test_sharing_options_have_one_set_of_terms(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=True)
    with torch.no_grad():
        norm.weight += 1
        norm.running_mean += 1
    terms = [torch.stack(norm.folded(option)) for option in EXECUTED]
    assert torch.equal(terms[0], terms[1])
    assert torch.equal(terms[0], terms[2])


def test_who_has_statistics_to_estimate(plain: nn.BatchNorm2d) -> None:
    own = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    shared = FractionalBatchNorm2d.of(plain, OPTIONS, shared=True)
    assert [own.owns_statistics(option) for option in OPTIONS] == [False, True, True, False]
    assert not any(shared.owns_statistics(option) for option in OPTIONS)
    low = FractionalBatchNorm2d.of(plain, OptionSet.of([4, 8]), shared=False)
    assert [low.owns_statistics(option) for option in (Option(4), Option(8))] == [True, True]


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 2, 4]])
def test_statistics_are_those_of_all_images(plain: nn.BatchNorm2d, sizes: list[int]) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    images = torch.randn(7, 5, 3, 4) * torch.tensor([0.5, 1, 2, 3, 4])[:, None, None] + 1.5
    for batch in images.split(sizes):
        out = norm.estimate(batch, Option(8))
        # While gathering, each batch is normalised by its own statistics.
        twin = nn.BatchNorm2d(5, eps=1e-3)
        twin.load_state_dict(plain.state_dict())
        torch.testing.assert_close(out, twin(batch), rtol=1e-4, atol=1e-4)
    norm.finish_estimate(Option(8))
    values = images.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
    np.testing.assert_allclose(norm.option_mean[1], values.mean(1), rtol=1e-5)
    np.testing.assert_allclose(norm.option_var[1], values.var(1, ddof=1), rtol=1e-5)
    # Nobody else's moved, and the learned terms are not statistics.
    assert torch.equal(norm.option_mean[0], plain.running_mean)
    assert torch.equal(norm.option_var[0], plain.running_var)
    assert torch.equal(norm.running_mean, plain.running_mean)
    assert torch.equal(norm.option_weight[1], plain.weight)


def test_an_estimate_ends_when_it_is_finished(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    first, second = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4) + 9
    norm.estimate(first, Option(4))
    norm.finish_estimate(Option(4))
    kept = norm.option_mean[0].clone()
    norm.finish_estimate(Option(4))  # nothing gathered since: nothing changes
    assert torch.equal(norm.option_mean[0], kept)
    norm.estimate(second, Option(8))
    norm.finish_estimate(Option(8))
    assert torch.equal(norm.option_mean[0], kept)
    torch.testing.assert_close(norm.option_mean[1], second.mean((0, 2, 3)))


@pytest.mark.parametrize("sizes", [[7], [3, 4]])
@pytest.mark.parametrize("options", [OPTIONS, OptionSet.of(["skip", 4])], ids=["row", "top"])
def test_recorded_an_options_output_gets_the_moments_of_the_plain_one(
    plain: nn.BatchNorm2d, options: OptionSet, sizes: list[int]
) -> None:
    norm = FractionalBatchNorm2d.of(plain, options, shared=False)
    # Values unlike those of the statistics, and what a rounding may make of them.
    values = torch.randn(7, 5, 3, 4, dtype=torch.float64) * 3 + 1
    rounded = values * 0.7 - 0.4 + 0.3 * torch.randn(7, 5, 3, 4, dtype=torch.float64)
    for batch in values.float().split(sizes):
        norm.record(batch)
    var = plain.running_var.double() + plain.eps
    gain, offset = norm.folded64(Option(4))
    wanted = values * gain[:, None, None] + offset[:, None, None]
    for batch in rounded.float().split(sizes):
        norm.estimate(batch, Option(4))
    norm.finish_estimate(Option(4))
    gain, offset = norm.folded64(Option(4))
    found = rounded * gain[:, None, None] + offset[:, None, None]
    close = torch.testing.assert_close
    axes = (0, 2, 3)
    close(found.mean(axes), wanted.mean(axes), rtol=1e-5, atol=1e-5)
    # The variance as well, but for what the floor adds on both sides.
    floor = var / 64
    ratio = (rounded.var(axes, correction=0) + floor) / (values.var(axes, correction=0) + floor)
    close(gain.abs(), plain.weight.double().abs() / (var * ratio).sqrt(), rtol=1e-5, atol=1e-6)
    close(found.var(axes), wanted.var(axes), rtol=0.05, atol=1e-6)
    norm.forget()
    norm.estimate(rounded.float(), Option(4))
    norm.finish_estimate(Option(4))
    close(norm._terms(Option(4))[2].double(), rounded.mean(axes), rtol=1e-5, atol=1e-5)


def test_recorded_a_channel_that_does_not_vary_keeps_its_scale(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    norm.record(torch.ones(2, 5, 3, 3))
    norm.estimate(torch.full((2, 5, 3, 3), 1.5), Option(4))
    norm.finish_estimate(Option(4))
    torch.testing.assert_close(norm.option_mean[0], plain.running_mean + 0.5)
    torch.testing.assert_close(norm.option_var[0], plain.running_var)


def test_a_quantised_top_option_estimates_under_the_parents_names(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OptionSet.of(["skip", 4, 8]), shared=False)
    z = torch.randn(4, 5, 3, 3)
    norm.estimate(z, Option(8))
    norm.finish_estimate(Option(8))
    torch.testing.assert_close(norm.running_mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, z.var((0, 2, 3)))
    assert torch.equal(norm.option_mean[0], plain.running_mean)


def test_one_value_a_channel_has_no_variance(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    norm.estimate(torch.ones(1, 5, 1, 1), Option(4))
    norm.finish_estimate(Option(4))
    assert norm.option_var[0].tolist() == [0.0] * 5
    assert norm.folded(Option(4))[0].isfinite().all()


def test_gradients_reach_the_rows_in_use(plain: nn.BatchNorm2d) -> None:
    norm = FractionalBatchNorm2d.of(plain, OPTIONS, shared=False)
    sum(term.sum() for term in norm.folded(Option(8))).backward()
    assert norm.option_weight.grad is not None
    assert (norm.option_weight.grad[1] != 0).all()
    assert (norm.option_weight.grad[0] == 0).all()
    assert norm.option_bias.grad is not None
    assert norm.option_bias.grad.tolist() == [[0.0] * 5, [1.0] * 5]
    assert norm.weight.grad is None
