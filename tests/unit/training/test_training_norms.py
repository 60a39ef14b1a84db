from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.training import norms
from fracskip.training.norms import choose_norms

Net = Callable[..., DynamicNetwork]
COUNT = 96


@pytest.fixture
def data() -> ImageSet:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    names = ("a", "b", "c")
    return ImageSet(pixels, np.arange(COUNT) % 3, names, "noise", "validation", "made here")


def batches(net: DynamicNetwork, data: ImageSet) -> list[torch.Tensor]:
    return list(preprocess(torch.from_numpy(data.images), net.spec.image).split(COUNT // 2))


def statistics(net: DynamicNetwork) -> dict[str, torch.Tensor]:
    names = ("_mean", "_var")
    return {name: x.clone() for name, x in net.state_dict().items() if name.endswith(names)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("better", ["options", "paths"])
def test_those_with_less_loss_stay(
    better: str, make_net: Net, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net()
    images = batches(net, data)
    mixed = [torch.randint(0, len(net.options), (len(b), len(net.blocks))) for b in images]
    seen: list[dict[str, torch.Tensor]] = []

    def loss(net: DynamicNetwork, *_: object) -> float:
        seen.append(statistics(net))
        return float(better == ("options", "paths")[len(seen) - 1]) * -1.0

    monkeypatch.setattr(norms, "_loss", loss)
    assert choose_norms(net, images, mixed, data) == better
    by_option, along_paths = seen
    assert not equal(by_option, along_paths)
    assert equal(statistics(net), by_option if better == "options" else along_paths)


def test_each_option_alone_is_what_calibration_estimates(
    make_net: Net, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, other = make_net(), make_net()
    other.load_state_dict(net.state_dict())
    images = batches(net, data)
    losses = iter((0.0, 1.0))
    monkeypatch.setattr(norms, "_loss", lambda *_: next(losses))
    assert choose_norms(net, images, None, data) == "options"
    full = [other.forced("full", len(batch)) for batch in images]
    other.reestimate(images, decisions=full)
    for name, value in statistics(other).items():
        if name.endswith(("running_mean", "running_var")) and "downsample" not in name:
            assert torch.equal(statistics(net)[name], value), name


def test_the_loss_is_the_cross_entropy_of_what_the_gates_choose(
    make_net: Net, data: ImageSet
) -> None:
    net = make_net().eval()
    labels = torch.from_numpy(data.labels)
    with torch.no_grad():
        logits = torch.cat([net(batch).logits for batch in batches(net, data)])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert norms._loss(net, data, COUNT) == pytest.approx(float(expected), rel=1e-4)
    first = torch.nn.functional.cross_entropy(logits[:40], labels[:40])
    assert norms._loss(net, data, 40) == pytest.approx(float(first), rel=1e-4)
