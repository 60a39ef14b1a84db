"""Zeros around images, by whatever word: the same answers, in as few operations as there may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.support.deployed import pixels
from tests.support.residual_networks import conv, make_images, same
from tests.unit.models.test_models_tracing import make, residual
from torch import Tensor, nn
from torch.nn import functional as F

import fracskip
from fracskip.config import QuantConfig
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets

PLAIN = residual(lambda m, x: F.relu(m.a(x)))
ENGINES = ("portable", *(["native"] if instruction_sets() else []))
SIZE = (13, 10)

Change = Callable[[Tensor], Tensor]


class Then(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.change = nn.ModuleList(layers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layers, x)


def bare(kernel: int, stride: int = 1, inputs: int = 3, **others: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, kernel, stride, **others)


def by_size(kernel: int, stride: int) -> nn.Module:
    """As TensorFlow pads: by what the image's size leaves over."""
    return Then(lambda layers, x: layers[0](same(x, kernel, stride)), bare(kernel, stride))


def around(*pads: int) -> nn.Module:
    return nn.ZeroPad2d(pads)


def before_pool(*layers: nn.Module, act: bool = True) -> nn.Module:
    return nn.Sequential(conv(3, 8), *([nn.ReLU()] if act else []), *layers)


def several(layers: Any, x: Tensor) -> Tensor:
    """Three take what is padded: two convolutions and a product."""
    y = F.pad(layers[0](x), (0, 1, 2, 0))
    return F.pad(layers[1](y) * layers[2](y), (1, 1, 1, 1)) * y


# What stems may do, and the operations that it comes to.
STEMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    **{
        f"SAME, {kernel} by {kernel}, stride {stride}": (
            lambda kernel=kernel, stride=stride: by_size(kernel, stride),
            ["conv"],
        )
        for kernel, stride in ((2, 1), (3, 2), (5, 1), (5, 2))
    },
    "a layer that pads": (lambda: nn.Sequential(around(0, 1, 0, 1), bare(3, 2)), ["conv"]),
    "zeros as a constant": (
        lambda: nn.Sequential(nn.ConstantPad2d((2, 0, 1, 3), 0.0), bare(3)),
        ["conv"],
    ),
    "pads of pads": (
        lambda: nn.Sequential(around(0, 1, 0, 1), around(2, 0, 0, 0), bare(3, padding=1)),
        ["conv"],
    ),
    "a dropout between": (
        lambda: nn.Sequential(around(0, 1, 1, 0), nn.Dropout(0.5), bare(3)),
        ["conv"],
    ),
    "same, of an even kernel": (lambda: bare(4, padding="same"), ["conv"]),
    "same, dilated": (lambda: bare(2, padding="same", dilation=3), ["conv"]),
    "before a max pool": (
        lambda: before_pool(around(0, 1, 0, 1), nn.MaxPool2d(3, 2)),
        ["conv", "pool"],
    ),
    "before a max pool, of both signs": (
        lambda: before_pool(around(0, 1, 0, 1), nn.MaxPool2d(3, 2), act=False),
        ["conv", "pool", "pool"],
    ),
    "before a max pool, too wide for it": (
        lambda: before_pool(around(2, 2, 2, 2), nn.MaxPool2d(3, 2)),
        ["conv", "pool", "pool"],
    ),
    "before an average pool": (
        lambda: before_pool(around(0, 1, 0, 1), nn.AvgPool2d(3, 2)),
        ["conv", "pool"],
    ),
    "before an average pool, wider than it": (
        lambda: before_pool(around(3, 0, 0, 4), nn.AvgPool2d(2)),
        ["conv", "pool"],
    ),
    "before an average pool that pads": (
        lambda: before_pool(around(0, 1, 0, 1), nn.AvgPool2d(3, 2, 1)),
        ["conv", "pool"],
    ),
    "before an average pool that does not count": (
        lambda: before_pool(around(0, 1, 0, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        ["conv", "pool", "pool"],
    ),
    "before an activation": (
        lambda: nn.Sequential(conv(3, 8), around(0, 1, 0, 1), nn.Hardsigmoid(), bare(3, inputs=8)),
        ["conv", "pool", "act", "conv"],
    ),
    "taken by several": (
        lambda: Then(several, conv(3, 8), bare(3, inputs=8), bare(3, inputs=8)),
        ["conv", "conv", "conv", "mul", "pool", "pool", "mul"],
    ),
    "at the end": (lambda: nn.Sequential(conv(3, 8), around(0, 1, 2, 0)), ["conv", "pool"]),
    "a max pool that goes on": (
        lambda: before_pool(nn.MaxPool2d(3, 2, ceil_mode=True)),
        ["conv", "pool"],
    ),
    "an average pool that goes on": (
        lambda: before_pool(nn.AvgPool2d(2, ceil_mode=True)),
        ["conv", "pool"],
    ),
    "an average pool that goes on beyond what it does not count": (
        lambda: before_pool(nn.AvgPool2d((2, 3), (2, 1), (0, 1), True, False)),
        ["conv", "pool"],
    ),
}


def dynamic(net: nn.Module, stream: Any) -> DynamicNetwork:
    images = make_images(8, SIZE)
    return fracskip.convert(
        net,
        ["skip", 8, "full"],
        example_input=images[:1],
        calibration=[images],
        quant=QuantConfig(stream=stream),
    )


# What levels of an int8 stream are made of: a convolution's values, and those of others.
STREAMED = ("SAME, 3 by 3, stride 2", "before an average pool", "taken by several", "at the end")


@pytest.mark.parametrize(
    ("name", "stream"), [*((name, "float") for name in STEMS), *((n, "int8") for n in STREAMED)]
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_stems_answer_alike(name: str, stream: str, tmp_path: Path) -> None:
    make_stem, ops = STEMS[name]
    plain, images = make(PLAIN), make_images(6, SIZE)
    plain.stem = make_stem()
    net = dynamic(plain.eval(), stream)
    decisions = net.forced("full", 6)
    with torch.no_grad():
        wanted = net(images, decisions=decisions).logits
        if stream == "float":
            torch.testing.assert_close(wanted, plain(images), rtol=0, atol=1e-6)
    fracskip.export(net, tmp_path / "net.fsk")
    for engine in ENGINES:
        session = InferenceSession(tmp_path / "net.fsk", engine=engine)
        found = [op.op for op in session.plan.network.parts[0].branch]
        # In an int8 stream, a last pool may be followed by what makes levels of its values.
        assert found == ops or (stream == "int8" and found == [*ops, "affine"])
        answers = session.run(pixels(images), decisions=decisions.numpy()).logits
        off = np.abs(answers - wanted.numpy()).max(1)
        # A level apart, where two roundings tie, is rare.
        assert (off > 1e-4).sum() <= (1 if stream == "int8" else 0), engine
        assert off.max() < 0.02, engine
    fracskip.export(net, tmp_path / "net.onnx")
    model = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    given = {"images": images[:1].numpy(), "budget": np.full((1, 1), 0.5, np.float32)}
    (logits,) = model.run(["logits"], {each.name: given[each.name] for each in model.get_inputs()})
    free = session.run(pixels(images[:1]), budget=0.5)
    np.testing.assert_allclose(logits, free.logits, atol=0.02)


# -- within blocks, at every width ----------------------------------------------------------------


def sparing(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda block, x: x + change(block, x)


# What branches may do with a convolution that does not pad: all of it keeps an image's size.
BRANCHES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "one side": (sparing(lambda m, x: m.a(F.pad(x, (2, 0, 0, 2)))), ["conv"]),
    "after a ReLU": (
        sparing(lambda m, x: m.b(m.a(F.pad(F.relu(x), (2, 0, 0, 2))))),
        ["act", "conv", "conv"],
    ),
    "between two": (
        sparing(lambda m, x: m.a(F.pad(F.relu(m.b(x)), (0, 2, 1, 1)))),
        ["conv", "conv"],
    ),
    "in front of the sum": (sparing(lambda m, x: F.pad(m.a(x), (1, 1, 2, 0))), ["conv", "pool"]),
    "before pools": (
        sparing(lambda m, x: F.avg_pool2d(F.pad(m.a(x).relu(), (1, 2, 3, 0)), 2, 1)),
        ["conv", "pool"],
    ),
}


@pytest.mark.parametrize("stream", ["float", "int8"])
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_answer_alike(name: str, stream: str, tmp_path: Path) -> None:
    forward, ops = BRANCHES[name]
    plain, images = make(forward), make_images(6, SIZE)
    for block in plain.body:  # type: ignore[union-attr]
        block.a.padding = (0, 0)
    net = dynamic(plain, stream)
    fracskip.export(net, tmp_path / "net.fsk")
    off = []
    for engine in ENGINES:
        session = InferenceSession(tmp_path / "net.fsk", engine=engine)
        assert [op.op for op in session.plan.gated[0].branch] == ops
        for option in net.options.labels:
            decisions = net.forced(option, 6)
            with torch.no_grad():
                wanted = net(images, decisions=decisions).logits
            found = session.run(pixels(images), decisions=decisions.numpy()).logits
            off.append(np.abs(found - wanted.numpy()).max(1))
    assert np.mean(np.stack(off) > 1e-4) < 0.1
    assert np.max(off) < 0.05


def test_levels_of_a_stream_are_padded_as_they_are() -> None:
    """At 8 bits, a convolution behind zeros takes the levels that the block takes."""
    plain = make(BRANCHES["one side"][0])
    for block in plain.body:  # type: ignore[union-attr]
        block.a.padding = (0, 0)
    _, tensors = fracskip.deployment.bundle.bundle_of(dynamic(plain, "int8"))
    assert "parts.2.8.0.weight" in tensors
    assert "parts.2.8.0.input" not in tensors
    assert tensors["parts.2.8.0.zero"] == tensors["parts.1.zero"] > 0


# -- what has no place ----------------------------------------------------------------------------

OTHER = "adds something else than zeros around height and width"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: F.pad(y, (0, 1, 0, 1), value=1.0), OTHER),
        (lambda y: F.pad(y, (1, 1, 1, 1), "reflect"), OTHER),
        (lambda y: F.pad(y, (1, -1, 0, 0)), OTHER),
        (lambda y: F.pad(y, (0, 0, 0, 0, 0, 8)), OTHER),
        (lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True), "its mean counts some padding only"),
        (lambda y: F.max_pool2d(y, 3, 3, ceil_mode=True), "windows see little of the image"),
    ],
)
def test_what_has_no_place_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    plain = make(PLAIN)
    stem = conv(3, 8)
    plain.stem = Then(lambda layers, x: layers[0](change(layers[1](x))), conv(8, 8), stem)
    if message == OTHER and change(torch.zeros(1, 8, 9, 9)).shape[1] > 8:
        plain.stem.layers[0] = conv(16, 8)  # type: ignore[index]
    net = dynamic(plain.eval(), "float")
    with pytest.raises(ConfigError, match=message):
        fracskip.export(net, tmp_path / "net.fsk")
