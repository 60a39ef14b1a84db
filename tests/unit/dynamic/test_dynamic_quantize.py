"""Post-training quantisation: a module and some images become integers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fracskip
from fracskip.config import IMAGENET_MEAN, IMAGENET_STD, ImageConfig
from fracskip.data import ImageSet
from fracskip.data.resampling import resize
from fracskip.errors import ConfigError, DataError
from fracskip.quant.convolution import FractionalLayer
from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets
from support.residual_networks import KINDS, Loose, Network, conv

HALF = ImageConfig(size=(12, 10), mean=(0.5,) * 3, std=(0.5,) * 3)


def pixels(count: int = 48, size: tuple[int, int] = (12, 10), seed: int = 0) -> Any:
    """Smooth pictures of unlike brightness, uint8."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=draw)
    fine = F.interpolate(coarse, size, mode="bilinear") * 200
    drawn = (fine + 55 * torch.rand(count, 3, 1, 1, generator=draw)).byte()
    return np.ascontiguousarray(drawn.permute(0, 2, 3, 1).numpy())


def chain() -> nn.Module:
    """As of MobileNet's first version: no residual block."""
    return nn.Sequential(
        conv(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        conv(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def flattening() -> nn.Module:
    """As VGG: its first linear layer takes whole images."""
    return nn.Sequential(
        conv(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(48, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5),
    )  # fmt: skip


class Gelu(nn.Module):
    """Its sum is followed by what rounding to levels is not."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.project = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)) + self.project(x))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: lambda kind=kind: Network(kind) for kind in KINDS},  # type: ignore[misc]
    "chain": chain,
    "flattening": flattening,
    "Gelu": lambda: Network(Gelu),
    "Loose": Loose,
}


def make(name: str = "Bottleneck") -> nn.Module:
    """A network that has seen images like those of `pixels`."""
    torch.manual_seed(1)
    net = MAKERS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch, as they are
    with torch.no_grad():
        net.train()(fracskip.preprocess(pixels(), HALF))
    return net.eval()


def ratio(found: Tensor, wanted: Tensor) -> float:
    """Signal to noise, in dB."""
    signal = (wanted - wanted.mean(0)).square().sum()
    return float(10 * torch.log10(signal / (found - wanted).square().sum()))


def quantised(net: nn.Module, images: Any = None, **given: Any) -> fracskip.DynamicNetwork:
    return fracskip.quantize(net, pixels() if images is None else images, image=HALF, **given)


@pytest.mark.parametrize(("options", "least"), [((8,), 16), ((6,), 12)])
@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_every_layer_becomes_integers_in_torch_and_in_the_engine(
    name: str, options: tuple[int, ...], least: float, tmp_path: Path
) -> None:
    plain = make(name)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    net = quantised(plain, options=options)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, FractionalLayer) for layer in layers)
    fresh = pixels(32, seed=5)
    images = fracskip.preprocess(fresh, HALF)
    found = net(images)
    wanted = plain(images)
    assert ratio(found.logits, wanted) > least
    assert torch.equal(found.cost, net(images[:1]).cost.expand(32))
    fracskip.export(net, tmp_path / "net.fsk")
    for engine in ("portable", "native") if instruction_sets() else ("portable",):
        session = InferenceSession(tmp_path / "net.fsk", engine=engine)
        assert ratio(torch.from_numpy(session.run(fresh).logits), found.logits) > 35
        kernels = [name for _, _, names in session.kernels() for name in names]
        assert len(kernels) >= len(layers) - 1  # a projection is not among them
        assert not [name for name in kernels if "float" in name]
    after = plain.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def images_as(kind: str) -> Any:
    given, labels = pixels(), np.arange(48) % 5
    floats = fracskip.preprocess(given, HALF)
    return {
        "pixels": given,
        "tensor": torch.from_numpy(given),
        "floats": floats,
        "set": ImageSet(given, labels, tuple("abcde"), "some", "train", "here"),
        "batches": [given[:32], given[32:]],
        "pairs": [(given[:32], labels[:32]), (given[32:], labels[32:])],
        "rows": [{"image": floats[:10]}, {"image": floats[10:], "label": labels[10:]}],
        "loader": iter([[given]]),
    }[kind]


@pytest.mark.parametrize("kind", ["tensor", "floats", "set", "batches", "pairs", "rows", "loader"])
def test_images_are_the_same_however_they_are_given(kind: str) -> None:
    net = make()
    wanted = quantised(net).state_dict()
    found = quantised(net, images_as(kind)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_pixels_of_another_size_are_brought_to_the_networks() -> None:
    net, large = make(), pixels(size=(24, 20))
    wanted = quantised(net, resize(large, (12, 10))).state_dict()
    for found in (quantised(net, large), fracskip.quantize(net, large, image=HALF, size=(12, 10))):
        assert all(torch.equal(found.state_dict()[key], value) for key, value in wanted.items())
    assert fracskip.quantize(net, large, size=16).spec.image.size == (16, 16)


def test_what_images_are_is_said_by_the_caller_the_network_or_the_images() -> None:
    net = make()
    found = fracskip.quantize(net, pixels()).spec.image
    assert (found.mean, found.std, found.size) == (IMAGENET_MEAN, IMAGENET_STD, (12, 10))
    net.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}  # type: ignore[assignment]
    found = fracskip.quantize(net, pixels(size=(24, 20)), size=(12, 10)).spec.image
    assert (found.mean, found.std, found.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (12, 10))
    assert quantised(net).spec.image == HALF
    named = quantised(net, class_names="abcde", name="mine")
    assert (named.spec.class_names, named.spec.model.name) == (tuple("abcde"), "mine")
    assert named.notes == {"quantisation": {"images": 48, "taken": {"8": "compensated"}}}


def none() -> Iterator[Any]:
    yield from ()


FLOATS = torch.zeros(8, 3, 12, 10)


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (pixels()[:0], {}, "there is no calibration image: give some"),
        (none(), {}, "there is no calibration image: give some"),
        ([], {}, "there is no calibration image: give some"),
        ("photos", {}, "calibration images are a str: give uint8 pixels"),
        (3, {}, "calibration images are a int: give uint8 pixels"),
        (pixels()[0], {}, r"batch 1: images of shape \(12, 10, 3\) do not fit: give uint8"),
        (
            [{"label": 3}],
            {},
            "calibration batch 1: a batch has the keys 'label': exactly one of 'image'",
        ),
        ([[]], {}, "calibration batch 1: a batch is empty"),
        (pixels()[..., :1], {}, r"batch 1: images of shape \(48, 12, 10, 1\) .* do not fit"),
        (pixels(size=(9, 9)), {}, "images of 9x9 are smaller than the network's 12x10"),
        (FLOATS[..., 1:], {}, "normalised images of 12x9 are given, the network takes 12x10"),
        (FLOATS + torch.nan, {}, "batch 1: images hold NaN or infinite values"),
        (pixels(), {"size": 4}, "size 4 is none: give pixels, 8 at least, or"),
        (pixels(), {"size": (12, 10, 3)}, r"size \(12, 10, 3\) is none: give pixels"),
        (pixels(), {"options": ("skip", 8, 9, 99)}, "99"),
    ],
)
def test_what_does_not_fit_is_refused(images: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        quantised(make(), images, **given)


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="in training mode: call eval"):
        quantised(make().train())


def test_few_images_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="3 calibration images say little .* 8 at least"):
        quantised(make(), pixels(3))


def test_of_many_images_some_are_taken_and_no_more_are_read() -> None:
    read = []

    def batches() -> Iterator[Any]:
        for start in range(9):
            read.append(start)
            yield pixels(200, seed=start)

    net = quantised(make("chain"), batches())
    assert read == [0, 1, 2, 3, 4, 5]
    assert net.notes["quantisation"]["images"] == 1024
    assert quantised(make("chain"), pixels(1500)).notes["quantisation"]["images"] == 750


@pytest.mark.parametrize("name", ["Bottleneck", "Inverted", "chain"])
@torch.no_grad()
def test_images_of_two_kinds_do_no_harm(name: str) -> None:
    plain = make(name)
    kinds = np.concatenate([pixels(32, seed=8) // 8, 255 - pixels(32, seed=9) // 8])
    images = fracskip.preprocess(pixels(64, seed=5), HALF)
    wanted = plain(images)
    few, many = (ratio(quantised(plain, given)(images).logits, wanted) for given in (kinds, None))
    assert few > many - 6


def test_options_to_choose_from_need_blocks_and_get_gates() -> None:
    net = quantised(make(), options=("skip", 4, 8))
    assert net.gate is not None
    assert net.options.labels == ("skip", "4", "8")
    with pytest.raises(
        ConfigError, match=r"Sequential has no residual blocks: .*fracskip.quantize"
    ):
        quantised(make("chain"), options=("skip", 4, 8))
    with pytest.raises(ConfigError, match=r"stream 'int8' takes sums that a ReLU follows"):
        quantised(make("Gelu"), options=("skip", 4, 8))


def test_a_network_without_blocks_is_saved_and_loaded(tmp_path: Path) -> None:
    plain = make("chain")
    net = quantised(plain)
    fracskip.save(net, tmp_path / "net.safetensors")
    with warnings.catch_warnings(), torch.no_grad():
        again = fracskip.load(tmp_path / "net.safetensors", model=plain)
        images = fracskip.preprocess(pixels(4), HALF)
        assert torch.equal(again(images).logits, net(images).logits)
    record = fracskip.evaluate(net, [(pixels(10), np.arange(10) % 5)])
    assert (record["cp"], record["images"]) == (1.0, 10)
