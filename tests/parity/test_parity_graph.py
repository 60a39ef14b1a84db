"""Traced networks, of both kinds of stream: the native engine against the portable one, on every
instruction set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.residual_networks import (
    KINDS,
    Bottleneck,
    Loose,
    Network,
    Twice,
    conv,
    make_images,
    settled,
)
from torch import Tensor, nn
from torch.nn import functional as F

import fracskip
from fracskip.config import QuantConfig
from fracskip.dynamic import DynamicNetwork
from fracskip.operating import OperatingPoints
from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets

OPTIONS = ("skip", 2, 3, 4, 6, 8, 16, "full")
INTEGERS = ("2", "3", "4", "6", "8")
STREAMS = ("float", "int8")
ISAS = instruction_sets()
Kind = Callable[[int, int, int], nn.Module]

pytestmark = pytest.mark.skipif(not ISAS, reason="no native engine was built")


class Wide(nn.Module):
    """What the small ones lack: many channels, groups of 16 and of 5, dilation, ReLU6, pools."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, 48, 1)
        self.norm1 = nn.BatchNorm2d(48)
        self.second = nn.Conv2d(48, 48, 3, stride, padding=2, dilation=2, groups=3, bias=False)
        self.norm2 = nn.BatchNorm2d(48)
        self.third = nn.Conv2d(48, 35, 1)
        self.fourth = nn.Conv2d(35, outputs, 3, padding=1, groups=1)
        self.fifth = nn.Conv2d(outputs, outputs, (1, 5), padding=(0, 2), groups=outputs)
        self.gate = nn.Conv2d(outputs, outputs, 1)
        self.same = inputs == outputs and stride == 1
        self.project = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.first(x)))
        y = F.relu6(self.norm2(self.second(y)))
        y = F.max_pool2d(self.third(y), 3, 1, 1)
        y = F.avg_pool2d(self.fifth(F.relu(self.fourth(y))), 3, 1, 1)
        y = y * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        return F.relu(y + (x if self.same else self.project(x)))


class Stemmed(nn.Module):
    """A stem as ImageNet's networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 7, 2, 3, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.body = Network(Wide, channels=24)
        self.body.stem = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


def images_for(kind: object, count: int) -> Tensor:
    return make_images(count, (37, 42) if kind is Stemmed else (12, 10))


@functools.lru_cache
def network(kind: object, stream: str) -> DynamicNetwork:
    torch.manual_seed(0)
    images = images_for(kind, 8)
    plain = kind() if kind in (Loose, Stemmed) else Network(kind)  # type: ignore[operator,arg-type]
    net = fracskip.convert(
        settled(plain, images),
        OPTIONS,
        example_input=images[:1],
        calibration=[images],
        quant=QuantConfig(stream=stream),  # type: ignore[arg-type]
    )
    if kind is Wide and stream == "float":  # its gates are kept in bfloat16, the others' in float32
        assert net.gate is not None
        net.gate.round_embeddings()
    net.operating_points = OperatingPoints(
        target=0.1, multiplier_curve=((0.01, 60.0), (0.1, 0.0), (0.5, -60.0))
    )
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@functools.lru_cache
def bundle(kind: object, stream: str, folder: Path) -> Path:
    path = folder / f"{kind.__name__}_{stream}.fsk"  # type: ignore[attr-defined]
    fracskip.export(network(kind, stream), path)
    return path


def pixels(kind: object, count: int = 9) -> np.ndarray:
    return images_for(kind, count).permute(0, 2, 3, 1).contiguous().numpy()


def drawn_paths(session: InferenceSession, count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    shape = (count, len(session.plan.gated_names))
    chosen = draw.integers(0, len(session.options), shape).astype(np.uint8)
    executed = np.flatnonzero(session.plan.masks[:, 0])
    chosen[:, executed] = np.maximum(chosen[:, executed], 1)
    return chosen


def assert_agree(found: np.ndarray, wanted: np.ndarray, what: str = "") -> None:
    """All images but one: a value between two levels may go to either, exponentials being own."""
    off = np.abs(found - wanted).max(1)
    assert (off > 2e-4).sum() <= 1, f"{what}: {off}"
    assert off.max() < 0.1, f"{what}: {off}"


def runs_in_bfloat16(isa: str, option: object) -> bool:
    """Whether tiles execute a width in bfloat16, which has 8 significant bits."""
    return isa == "amx" and str(option) == "16"


def assert_near(stream: str, found: np.ndarray, wanted: np.ndarray) -> None:
    if stream == "int8":
        assert_agree(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


ALL = (*KINDS, Twice, Loose, Wide, Stemmed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kind", ALL)
def test_every_option_gives_the_same(kind: object, stream: str, isa: str, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, stream, folder), engine="portable")
    native = InferenceSession(bundle(kind, stream, folder), engine="native", isa=isa)
    images = pixels(kind)
    for option in portable.options.labels:
        decisions = portable.forced(option, len(images))
        executed = np.flatnonzero(portable.plan.masks[:, 0])
        decisions[:, executed] = np.maximum(decisions[:, executed], 1)
        wanted = portable.run(images, decisions=decisions)
        found = native.run(images, decisions=decisions)
        if runs_in_bfloat16(isa, option):
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=0.02)
        else:
            assert_agree(found.logits, wanted.logits, option)
        if kind is Bottleneck and stream == "int8" and option in ("skip", *INTEGERS):
            # Convolutions, sums and clamps alone: the same integers all the way to the head.
            np.testing.assert_array_equal(found.logits, wanted.logits, option)
        np.testing.assert_array_equal(found.decisions, decisions)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kind", ALL)
def test_every_image_takes_its_own_path(kind: object, stream: str, isa: str, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, stream, folder), engine="portable")
    native = InferenceSession(bundle(kind, stream, folder), engine="native", isa=isa, threads=2)
    images = pixels(kind)
    decisions = drawn_paths(portable, len(images))
    if stream == "float" or runs_in_bfloat16(isa, 16):
        decisions[decisions == OPTIONS.index(16)] = OPTIONS.index("full")
    wanted = portable.run(images, decisions=decisions)
    for _ in range(3):  # what one image leaves behind must not matter to the next
        found = native.run(images, decisions=decisions)
        assert_agree(found.logits, wanted.logits)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kind", ALL)
def test_gates_decide_alike(kind: object, stream: str, folder: Path) -> None:
    portable = InferenceSession(bundle(kind, stream, folder), engine="portable")
    native = InferenceSession(bundle(kind, stream, folder), engine="native")
    images = pixels(kind, 24)
    for budget in (0.01, 0.05, 0.2, 0.5):
        wanted = portable.run(images, budget=budget)
        found = native.run(images, budget=budget)
        assert (found.decisions == wanted.decisions).mean() > 0.98
        same = (found.decisions == wanted.decisions).all(1)
        assert_near(stream, found.logits[same], wanted.logits[same])


@pytest.mark.parametrize("stream", STREAMS)
def test_cascades_are_the_same(stream: str, folder: Path) -> None:
    net = network(Wide, stream)
    images = images_for(Wide, 24)
    with torch.no_grad():
        sure = net(images, budget=0.05).logits.softmax(1).amax(1).sort().values
    middle = float(sure[11:13].mean())  # between two images
    before = net.operating_points
    try:
        rows = ((0.04, 0.02, 0.3, middle), (0.2, 0.05, 0.5, middle))
        net.operating_points = before.changed(cascade=rows)
        fracskip.export(net, folder / "cascade.fsk")
    finally:
        net.operating_points = before
    portable = InferenceSession(folder / "cascade.fsk", engine="portable")
    native = InferenceSession(folder / "cascade.fsk", engine="native")
    wanted, found = (each.run(pixels(Wide, 24), budget=0.1) for each in (portable, native))
    assert 0 < wanted.escalated.sum() < 24
    np.testing.assert_array_equal(found.escalated, wanted.escalated)
    np.testing.assert_array_equal(found.decisions, wanted.decisions)
    assert_near(stream, found.logits, wanted.logits)


def test_low_widths_run_on_integers(folder: Path) -> None:
    native = InferenceSession(bundle(Wide, "float", folder), engine="native")
    unchanged = {part.name for part in native.plan.gated if part.skip_is_identity}
    assert unchanged
    for block, option, names in native.kernels():
        if block not in native.plan.gated_names:
            continue
        branch = [name for name in names if "int8" in name]
        assert len(branch) == (6 if option in INTEGERS else 0)
        if option == "skip" and block in unchanged:
            assert not names
