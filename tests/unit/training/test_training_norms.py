from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation import predict
from fracskip.training import norms
from fracskip.training.norms import norm_statistics
from fracskip.training.validation import ValidationLoss

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


@pytest.mark.parametrize("better", ["options", "decisions"])
def test_those_with_less_loss_stay(
    better: str, make_net: Net, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net()
    images = batches(net, data)
    mixed = [torch.randint(0, len(net.options), (len(b), len(net.blocks))) for b in images]
    seen: list[dict[str, torch.Tensor]] = []

    def loss(*_: object) -> float:
        seen.append(statistics(net))
        return float(better == ("options", "decisions")[len(seen) - 1]) * -1.0

    monkeypatch.setattr(norms, "_mean", loss)
    before = statistics(net)
    kind, found = norm_statistics(net, images, mixed, data)
    assert kind == better
    by_option, along_paths = seen
    assert not equal(by_option, along_paths)
    assert equal(found, by_option if better == "options" else along_paths)
    assert equal(statistics(net), before)  # found, not set


def test_each_option_alone_is_what_calibration_estimates(
    make_net: Net, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, other = make_net(), make_net()
    other.load_state_dict(net.state_dict())
    images = batches(net, data)
    losses = iter((0.0, 1.0))
    monkeypatch.setattr(norms, "_mean", lambda *_: next(losses))
    kind, found = norm_statistics(net, images, None, data)
    assert kind == "options"
    full = [other.forced("full", len(batch)) for batch in images]
    other.reestimate(images, decisions=full)
    for name, value in statistics(other).items():
        if name.endswith(("running_mean", "running_var")) and "downsample" not in name:
            assert torch.equal(found[name], value), name


def test_the_loss_is_the_cross_entropy_along_the_paths(make_net: Net, data: ImageSet) -> None:
    net = make_net()
    draw = torch.Generator().manual_seed(0)
    paths = [
        torch.randint(0, len(net.options), (count, len(net.blocks)), generator=draw)
        for count in (COUNT, 40)
    ]
    labels, total = torch.from_numpy(data.labels), 0.0
    pixels = torch.cat(batches(net, data))
    net.eval()
    losses = [ValidationLoss(net, data, len(path)) for path in paths]
    with torch.no_grad():
        for path in paths:
            logits = net(pixels[: len(path)], decisions=path).logits
            total += float(
                nn.functional.cross_entropy(logits, labels[: len(path)], reduction="sum")
            )
    found = [loss(path) for loss, path in zip(losses, paths, strict=True)]
    assert COUNT * found[0] + 40 * found[1] == pytest.approx(total, rel=1e-4)


def test_both_are_held_against_the_same_decisions(
    make_net: Net, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net()
    chosen = predict(net, data.images).decisions
    seen: list[list[torch.Tensor]] = []

    def loss(_: ValidationLoss, paths: list[torch.Tensor]) -> float:
        seen.append(paths)
        return 0.0

    monkeypatch.setattr(norms, "_mean", loss)
    norm_statistics(net.train(), batches(net, data), None, data)
    assert net.training
    assert len(seen) == 2
    for given in seen:
        assert len(given) == 1
        np.testing.assert_array_equal(given[0], chosen)
