"""Steps and statistics from a few images, and what becomes of pixels before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import SCHEMES, close, make_backbone, make_images, make_spec

from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import DataError
from fracskip.quant.convolution import FractionalConv2d
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


def test_calibration_estimates_the_statistics_that_each_option_sees() -> None:
    spec = make_spec(("skip", "2", "8", "full"))
    net = DynamicNetwork(make_backbone(spec), spec)
    images = make_images(spec, 8)
    net.calibrate([images])
    block = net.blocks[0]
    (conv, norm), _ = block._units
    (_, first), *_ = net.backbone.named_blocks()
    with torch.no_grad():
        x = first(net.backbone.stem(images))
        for row, bits in enumerate((2, 8)):
            z = conv.execute(x, net.options[row + 1])
            close(norm.option_mean[row], z.mean((0, 2, 3)), 1e-5)
            close(norm.option_var[row], z.var((0, 2, 3)), 1e-4)
            assert net.options[row + 1].bits == bits
    assert not torch.allclose(norm.option_var[0], norm.option_var[1], rtol=1e-3)


def test_calibration_sees_the_first_batch_alone_for_its_steps() -> None:
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
