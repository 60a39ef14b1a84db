"""Steps and statistics from a few images, and what becomes of pixels before."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_networks import SCHEMES, close, make_backbone, make_images, make_spec
from torch import Tensor

from fracskip.dynamic import DynamicNetwork, estimation, preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.options import Option
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import PaperQuantiser


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("split", [[8], [3, 5]])
def test_calibration_gives_finite_steps_and_eight_bits_close_to_full(
    scheme: str, split: list[int]
) -> None:
    spec = make_spec(scheme=scheme)
    net = DynamicNetwork(make_backbone(spec), spec).train()
    plain = {name: value.clone() for name, value in make_backbone(spec).state_dict().items()}
    images = make_images(spec, 8)
    net.calibrate(images.split(split))
    assert net.training  # as it was
    for module in net.modules():
        if isinstance(module, FractionalConv2d):
            for value in module.quantiser.state_dict().values():
                assert value.isfinite().all()
            if isinstance(module.quantiser, PaperQuantiser):
                low, high = module.quantiser.activation_range.tolist()
                assert 0 <= low < high  # what follows a ReLU
            else:
                for steps in (module.quantiser.activation_step, module.quantiser.weight_step):
                    assert (steps > 0).all()
                    assert (steps < 1).all()
    # The full option keeps what the backbone learned: weights, norms and statistics.
    found = net.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())

    net.eval()
    with torch.no_grad():
        full = net(images, decisions=net.forced("full", 8)).logits
        errors = {
            bits: float((net(images, decisions=net.forced(bits, 8)).logits - full).std())
            / float(full.std())
            for bits in (4, 8)
        }
    # Images of unlike brightness: statistics of parts of them are not those of all.
    assert errors[8] < (0.1 if len(split) == 1 else 0.3)
    assert errors[8] < (0.3 if len(split) == 1 else 0.7) * errors[4]


# -- which statistics an option gets --------------------------------------------------------------

KINDS = [("float", "full"), ("int8", "full"), ("int8", "8")]
WIDTHS = ("skip", "2", "8", "full")


def converted(
    stream: str, ends: str, options: tuple[str, ...] = WIDTHS, scheme: str = "lsq"
) -> DynamicNetwork:
    """A network whose options have the backbone's statistics still, of `make_images`."""
    spec = make_spec(options, model="resnet8", stream=stream, ends=ends, scheme=scheme)
    return DynamicNetwork(make_backbone(spec), spec).eval()


def norms_of(net: DynamicNetwork) -> list[FractionalBatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, FractionalBatchNorm2d)]


def statistics(net: DynamicNetwork, option: Option) -> list[Tensor]:
    """Of the gated blocks' norms, which have them for each option."""
    branches = [norm for norm in norms_of(net) if len(norm._rows) == len(executed(net)) - 1]
    return [torch.stack(norm._terms(option)[2:]) for norm in branches]


def executed(net: DynamicNetwork) -> list[Option]:
    return [option for option in net.options if not option.is_skip]


def distances(net: DynamicNetwork, images: Tensor) -> dict[int, float]:
    """The mean squared distance of each width's logits to the plain network's."""
    with torch.no_grad():
        wanted, compared = net.plain()(images)[::4], images[::4]
        found = {
            option.bits: net(compared, decisions=net.forced(option, len(compared))).logits
            for option in net.options
            if option.is_quantised
        }
    return {bits: float((logits - wanted).square().mean()) for bits, logits in found.items()}


def with_own(net: DynamicNetwork, batches: Sequence[Tensor]) -> DynamicNetwork:
    """The network calibrated, all of whose options keep their statistics."""
    twin = copy.deepcopy(net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimation, "_choose", lambda *_: "own")
        twin.calibrate(batches)
    return twin


def few_classes(net: DynamicNetwork) -> list[Tensor]:
    """Images of two kinds, which are unlike those that the network was trained on."""
    kinds = torch.tensor([1.5, 2.5]).repeat(8)[:, None, None, None]
    return [make_images(net.spec, 16) * 0.1 + kinds]


@pytest.mark.parametrize(("stream", "ends"), KINDS)
@pytest.mark.parametrize("other", [False, True], ids=["alike", "two classes"])
def test_no_option_is_further_from_the_plain_network_than_with_its_own_statistics(
    stream: str, ends: str, other: bool
) -> None:
    net = converted(stream, ends)
    batches = few_classes(net) if other else [make_images(net.spec, 24)]
    plain = {name: value.clone() for name, value in net.plain().state_dict().items()}
    kept = with_own(net, batches)
    before = {option.bits: statistics(net, option) for option in net.options}
    net.calibrate(batches)
    own, found = distances(kept, batches[0]), distances(net, batches[0])
    moved = set()
    for option in net.options:
        if not option.is_quantised:
            continue
        pairs = zip(statistics(net, option), before[option.bits], strict=True)
        same = [now.equal(then) for now, then in pairs]
        assert all(same) or not any(same)
        # Another choice is a better one; the same statistics have the same ranges.
        if all(same):
            assert found[option.bits] == own[option.bits]
        else:
            assert found[option.bits] < own[option.bits]
            moved.add(option.bits)
    assert moved  # rounding moves what few bits see
    assert found[8] < 0.01
    # Full execution and what is always at 8 bits keep the backbone's.
    state = net.plain().state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.items())
    assert not any(norm._plain or norm._seen for norm in norms_of(net))


@pytest.mark.parametrize(("stream", "ends"), KINDS)
@pytest.mark.parametrize("options", [("skip", "3", "full"), ("3",)], ids=["set", "static"])
@pytest.mark.parametrize("error", [0.0, math.nan], ids=["tie", "nan"])
def test_statistics_and_ranges_stay_unless_others_are_closer(
    stream: str, ends: str, options: tuple[str, ...], error: float
) -> None:
    net = converted(stream, ends, options)
    images = make_images(net.spec, 16)
    kept = with_own(net, [images])
    # With its own, then with the others: a static network's weights may be rounded otherwise, too.
    errors = iter([0.0] + [error] * (2 if len(options) == 1 else 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimation, "_distance", lambda *_: next(errors))
        net.calibrate([images])
    assert next(errors, None) is None
    for name, value in kept.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


@pytest.mark.parametrize(("stream", "ends"), KINDS)
@pytest.mark.parametrize("sizes", [[16], [6, 10]])
def test_closer_statistics_give_the_mean_and_variance_that_the_plain_network_has(
    stream: str, ends: str, sizes: list[int]
) -> None:
    net = converted(stream, ends, ("2",))
    norm = net.backbone.get_submodule(net.blocks[0].name).bn1
    assert isinstance(norm, FractionalBatchNorm2d)
    images = make_images(net.spec, 16) * 0.5 + 1  # not those of the statistics
    batches = images.split(sizes)
    conv, option = net.backbone.get_submodule(net.blocks[0].name).conv1, net.options[0]
    outputs: list[Tensor] = []
    hook = norm.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    estimated = torch.cat([batch[[i for i in range(len(batch)) if i % 4]] for batch in batches])
    with torch.no_grad():
        net.backbone(estimated)
        hook.remove()
        wanted = torch.cat(outputs)
        errors = iter([1.0, 0.0, 1.0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimation, "_distance", lambda *_: next(errors))
            net.calibrate(batches)
        found = conv.execute(net.begin(estimated), option, *norm.folded(option))
    # What is before it in an int8 stream is corrected as well, batch by batch, then by the mean.
    exact = stream == "float" or len(sizes) == 1
    close(found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), 1e-4 if exact else 0.05)
    rtol = 0.1 if exact else 0.3
    torch.testing.assert_close(found.var((0, 2, 3)), wanted.var((0, 2, 3)), rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("options", [("2",), ("skip", "2", "4"), ("skip", "2", "full")])
def test_calibrated_again_an_option_is_as_close_as_before(options: tuple[str, ...]) -> None:
    net = converted("float", "full", options)
    images = make_images(net.spec, 16)
    wanted = net.plain()(images)[::4]
    net.calibrate([images])
    found = [statistics(net, option) for option in net.options]
    once = net(images[::4], decisions=net.forced("2", 4)).logits
    net.calibrate([images])
    twice = net(images[::4], decisions=net.forced("2", 4)).logits
    assert (twice - wanted).square().mean() < 1.01 * (once - wanted).square().mean()
    if options[-1] != "full":  # they were the plain network's, which is no longer there
        for before, after in zip(found, net.options, strict=True):
            assert all(map(torch.equal, statistics(net, after), before))


def test_shared_statistics_are_the_plain_networks() -> None:
    net = converted("float", "full", scheme="paper")
    before = {name: value.clone() for name, value in net.plain().state_dict().items()}
    batches = few_classes(net)
    net.calibrate(batches)
    after = net.plain().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert distances(net, batches[0])[8] < 0.01


def test_images_that_do_not_fit_are_refused_before_anything_changes() -> None:
    net = converted("int8", "full")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    good = make_images(net.spec, 2)
    for bad, shape in ((good[:, :1], r"\(2, 1, 8, 8\)"), (good[..., :7], r"\(3, 8, 7\)")):
        with pytest.raises(ConfigError, match=f"images of shape {shape} do not fit"):
            net.calibrate([good, bad])
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("errors", [(0.0, 1.0), (1.0, 0.0)], ids=["own", "moved"])
def test_calibration_sees_the_first_batch_alone_for_its_steps(
    errors: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.cycle(errors)
    monkeypatch.setattr(estimation, "_distance", lambda *_: next(turns))
    spec = make_spec()
    images = make_images(spec, 8)
    one, two = (DynamicNetwork(make_backbone(spec), spec) for _ in range(2))
    one.calibrate([images])
    two.calibrate([images, images * 10])
    steps = [
        {n: v for n, v in net.state_dict().items() if n.endswith("_step")} for net in (one, two)
    ]
    assert steps[0].keys() == steps[1].keys()
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_pixels_become_normalised_images() -> None:
    spec = make_spec()
    image = spec.image.model_copy(update={"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    out = preprocess(pixels, image)
    assert out.shape == (2, 3, 4, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = (pixels / 255 - np.array(image.mean)) / np.array(image.std)
    np.testing.assert_allclose(out.numpy(), wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert torch.equal(preprocess(torch.from_numpy(pixels), image), out)
    for bad in (
        pixels[0],
        pixels.astype(np.float32),
        pixels[..., :1],
        pixels.transpose(0, 3, 1, 2),
    ):
        with pytest.raises(DataError, match=r"do not fit: uint8 \(images, height, width, 3\)"):
            preprocess(bad, image)
