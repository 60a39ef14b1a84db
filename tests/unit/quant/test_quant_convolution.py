from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fracskip.options import Option, OptionSet
from fracskip.quant.affine import IntegerGrid, dequantise, quantise
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import SMALLEST_STEP

OPTIONS = OptionSet.of(["skip", 4, 8, "full"])
FOUR, EIGHT, FULL = Option(4), Option(8), Option(32)
SCHEMES = ["lsq", "paper"]


def plain(bias: bool = False, stride: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride, 1, bias=bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_are_taken_over_not_copied(scheme: str, bias: bool) -> None:
    conv = plain(bias)
    new = FractionalConv2d.of(conv, OPTIONS, scheme)
    assert new.weight is conv.weight
    assert new.bias is conv.bias
    assert conv.state_dict().keys() <= new.state_dict().keys()
    own = {
        "lsq": {"quantiser.activation_step", "quantiser.weight_step"},
        "paper": {"quantiser.activation_range"},
    }[scheme]
    assert new.state_dict().keys() - conv.state_dict().keys() == own
    missing, unexpected = new.load_state_dict(plain(bias).state_dict(), strict=False)
    assert (set(missing), unexpected) == (own, [])


def test_geometry_is_taken_over() -> None:
    conv = nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), (1, 1), groups=2, bias=True)
    new = FractionalConv2d.of(conv, OPTIONS, "lsq")
    x = torch.rand(2, 4, 7, 5)
    assert torch.equal(new.execute(x, FULL), conv(x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("bias", "stride"), [(False, 1), (True, 2)])
def test_full_is_the_plain_convolution_exactly(scheme: str, bias: bool, stride: int) -> None:
    conv = plain(bias, stride)
    new = FractionalConv2d.of(conv, OPTIONS, scheme)
    x = torch.randn(2, 4, 7, 9)
    assert torch.equal(new.execute(x, FULL), F.conv2d(x, conv.weight, conv.bias, stride, 1))


def test_each_width_has_steps_of_its_own() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    x = torch.randn(4, 4, 8, 8).relu()
    for option in (FOUR, EIGHT):
        new.observe(x, option)
    new.observe(x, FULL)  # nothing to initialise
    activation, weight = new.quantiser.activation_step, new.quantiser.weight_step
    assert activation.shape == (2, 1)
    assert weight.shape == (2, 6)
    assert (activation[0] > 4 * activation[1]).all()
    assert (weight[0] > 4 * weight[1]).all()
    assert weight[0].unique().numel() == 6

    # The 4-bit slot alone decides what 4 bits compute.
    before = new.execute(x, FOUR)
    with torch.no_grad():
        activation[1] *= 3
        weight[1] *= 3
    assert torch.equal(new.execute(x, FOUR), before)
    with torch.no_grad():
        weight[0] *= 1.3
    assert not torch.equal(new.execute(x, FOUR), before)


def test_a_quantised_option_convolves_the_references_numbers() -> None:
    conv = plain()
    new = FractionalConv2d.of(conv, OPTIONS, "lsq")
    x = torch.randn(2, 4, 6, 5)
    new.observe(x, FOUR)
    a_step = new.quantiser.activation_step[0].detach().numpy()
    w_step = new.quantiser.weight_step[0].detach().numpy()[:, None, None, None]
    weight = conv.weight.detach().numpy()
    a = dequantise(quantise(x.numpy(), a_step, 0, (0, 15)), a_step, 0)
    w = dequantise(quantise(weight, w_step, 0, (-7, 7)), w_step, 0)
    wanted = F.conv2d(torch.from_numpy(a), torch.from_numpy(w), None, 1, 1)
    assert torch.equal(new.execute(x, FOUR), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("option", [FOUR, EIGHT, FULL], ids=lambda option: option.label)
@pytest.mark.parametrize("bias", [False, True])
def test_gain_and_offset_are_a_batchnorm_after_the_convolution(
    scheme: str, option: Option, bias: bool
) -> None:
    new = FractionalConv2d.of(plain(bias), OPTIONS, scheme).eval()
    norm = nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_()
        norm.running_var.uniform_(0.2, 3)
    x = torch.randn(2, 4, 6, 6).relu()
    new.observe(x, option)
    terms = FractionalBatchNorm2d.of(norm, OPTIONS, shared=True).folded(option)
    folded = new.execute(x, option, *terms)
    torch.testing.assert_close(folded, norm(new.execute(x, option)), rtol=1e-5, atol=1e-5)


def test_an_offset_alone_is_added() -> None:
    for bias in (False, True):
        new = FractionalConv2d.of(plain(bias), OPTIONS, "lsq")
        x, offset = torch.randn(1, 4, 5, 5), torch.arange(6.0)
        wanted = new.execute(x, FULL) + offset[:, None, None]
        torch.testing.assert_close(new.execute(x, FULL, bias=offset), wanted)


def test_modern_grids_absorb_the_relu_before_them() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    x = torch.randn(2, 4, 6, 6)
    new.observe(x, FOUR)
    assert new.absorbs_relu(FOUR)
    assert (x < 0).any()
    assert torch.equal(new.execute(x, FOUR), new.execute(x.relu(), FOUR))
    assert not new.absorbs_relu(FULL)
    assert not torch.equal(new.execute(x, FULL), new.execute(x.relu(), FULL))


def test_paper_grids_keep_negative_values_so_they_absorb_nothing() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "paper").eval()
    x = torch.randn(2, 4, 6, 6)
    new.observe(x, FOUR)
    assert not new.absorbs_relu(FOUR)
    assert not new.absorbs_relu(FULL)
    assert not torch.equal(new.execute(x, FOUR), new.execute(x.relu(), FOUR))


def test_the_papers_range_follows_the_batch_in_training_only() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "paper")
    running = new.quantiser.activation_range
    assert running.isnan().all()
    new.observe(torch.tensor([-1.0, 3.0]).expand(1, 4, 3, 2), EIGHT)
    assert running.tolist() == [-1.0, 3.0]
    x = torch.tensor([-11.0, 13.0]).expand(1, 4, 3, 2)

    new.eval()
    first, second = new.execute(x, EIGHT), new.execute(x, EIGHT)
    assert torch.equal(first, second)
    assert running.tolist() == [-1.0, 3.0]
    # Clipped to the range: as if the values had been its ends.
    clipped = new.execute(torch.tensor([-1.0, 3.0]).expand(1, 4, 3, 2), EIGHT)
    torch.testing.assert_close(first, clipped)

    new.train()
    new.execute(x, FULL)
    assert running.tolist() == [-1.0, 3.0]
    new.execute(x, EIGHT)
    torch.testing.assert_close(running, torch.tensor([-2.0, 4.0]))
    new.execute(x, FOUR)  # one range for all widths
    torch.testing.assert_close(running, torch.tensor([-2.9, 4.9]))


def test_the_papers_weights_follow_their_tensors_min_and_max() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "paper")
    with torch.no_grad():
        new.weight.uniform_(-0.3, 0.5)
    found = new.quantiser.weight(new.weight, 0).detach()
    steps = found / ((new.weight.max() - new.weight.min()).item() / 15)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert 4 < found.unique().numel() <= 16
    assert (found - new.weight).abs().max() <= 0.51 * 0.8 / 15


@pytest.mark.parametrize("option", [FOUR, EIGHT], ids=lambda option: option.label)
def test_every_parameter_of_a_modern_option_learns(option: Option) -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    x = torch.randn(2, 4, 6, 6).requires_grad_()
    new.observe(x, option)
    new.execute(x, option).square().sum().backward()
    slot = {FOUR: 0, EIGHT: 1}[option]
    assert x.grad is not None
    assert new.weight.grad is not None
    assert (new.weight.grad != 0).any()
    assert (x.grad != 0).any()
    for steps in (new.quantiser.activation_step, new.quantiser.weight_step):
        assert steps.grad is not None
        assert (steps.grad[slot] != 0).all()
        assert (steps.grad[1 - slot] == 0).all()


def test_a_step_can_not_change_its_sign() -> None:
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    with torch.no_grad():
        new.quantiser.activation_step.fill_(-1.0)
        new.quantiser.weight_step.fill_(-0.01)
    x = torch.rand(1, 4, 5, 5)
    found = new.quantiser.activation(x, 1)
    assert found.isfinite().all()
    assert torch.equal(found, x.clamp(max=255 * SMALLEST_STEP).mul(2**24).round().div(2**24))
    weight = new.quantiser.weight(new.weight, 0)
    assert weight.isfinite().all()
    assert (weight.abs() <= 7 * SMALLEST_STEP).all()


def test_steps_start_from_no_more_than_a_sample_of_the_activations() -> None:
    # Values beyond the sample's limit are strided over, not cut off at the front.
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    x = torch.zeros(1, 4, 512, 256)
    x[:, 2:] = 2.0
    new.observe(x, EIGHT)
    assert float(new.quantiser.activation_step[1].detach()) == pytest.approx(2 / 255, rel=0.02)


def test_a_set_without_widths_has_no_slots() -> None:
    for scheme in SCHEMES:
        new = FractionalConv2d.of(plain(), OptionSet.of(["skip", "full"]), scheme)
        assert torch.equal(
            new.execute(torch.ones(1, 4, 4, 4), FULL), plain()(torch.ones(1, 4, 4, 4))
        )
        assert all(value.numel() in (0, 2) for value in new.quantiser.state_dict().values())


def test_gradient_scales_are_those_of_each_tensors_size() -> None:
    # One activation step for 2·4·6·6 values at q_max 15; one weight step for 4·3·3 at q_max 7.
    new = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    with torch.no_grad():
        new.quantiser.activation_step.fill_(0.01)
        new.quantiser.weight_step.fill_(1e-5)
    x = torch.full((2, 4, 6, 6), 5.0)  # all clipped: each value's step gradient is q_max
    new.quantiser.activation(x, 0).sum().backward()
    grad = new.quantiser.activation_step.grad
    assert grad is not None
    assert grad[0].item() == pytest.approx(15 * 288 / math.sqrt(288 * 15), rel=1e-5)
    with torch.no_grad():
        new.weight.fill_(1.0)
    new.quantiser.weight(new.weight, 0).sum().backward()
    grad = new.quantiser.weight_step.grad
    assert grad is not None
    np.testing.assert_allclose(grad[0].numpy(), 7 * 36 / math.sqrt(36 * 7), rtol=1e-5)


def test_grids_are_those_of_the_widths() -> None:
    new = FractionalConv2d.of(plain(), OptionSet.of("low"), "lsq")
    x = torch.linspace(0, 1, 4000).reshape(1, 4, 25, 40)
    for slot, bits in enumerate((2, 3, 4, 6, 8)):
        new.observe(x, Option(bits))
        _, top = IntegerGrid(bits, signed=False).bounds
        assert new.quantiser.activation(x, slot).unique().numel() == top + 1


# -- weights of each option's own -----------------------------------------------------------------


def test_own_weights_start_as_the_convolution_s_and_go_their_own_way() -> None:
    conv = plain()
    new = FractionalConv2d.of(conv, OPTIONS, "lsq", weights_per_option=True)
    assert [tuple(each.shape) for each in new.option_weight] == [tuple(conv.weight.shape)] * 2
    assert new.weight_of(FULL) is conv.weight
    assert torch.equal(new.weight_of(FOUR), conv.weight)
    x = torch.rand(2, 4, 7, 9)
    for option in (FOUR, EIGHT):
        new.observe(x, option)
    shared = FractionalConv2d.of(plain(), OPTIONS, "lsq")
    for option in (FOUR, EIGHT):
        shared.observe(x, option)
        assert torch.equal(new.execute(x, option), shared.execute(x, option))
    new.execute(x, FOUR).sum().backward()
    assert new.option_weight[0].grad is not None
    assert new.option_weight[1].grad is None
    assert conv.weight.grad is None
    before = new.execute(x, EIGHT).detach()
    with torch.no_grad():
        new.option_weight[0].mul_(2)
    assert torch.equal(new.execute(x, EIGHT), before)
    assert not torch.equal(new.execute(x, FOUR), shared.execute(x, FOUR))


def test_the_dearest_option_keeps_the_convolution_s_weights() -> None:
    options = OptionSet.of(["skip", 2, 8])
    new = FractionalConv2d.of(plain(), options, "lsq", weights_per_option=True)
    assert len(new.option_weight) == 1
    assert new.weight_of(EIGHT) is new.weight
    static = FractionalConv2d.of(plain(), OptionSet.of([8]), "lsq", weights_per_option=True)
    assert len(static.option_weight) == 0
