"""What people write in `forward`, as bundles: the same logits, or a refusal by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.deployed import pixels, session_of
from tests.support.residual_networks import make_images
from tests.unit.models.test_models_tracing import BLOCKS, HEADS, Forward, make, residual
from torch import nn

import fracskip
from fracskip.config import QuantConfig
from fracskip.errors import ConfigError

PLAIN = BLOCKS["+= and relu"]
# A bundle has no word for values that are parts of others.
REFUSED = {
    "a view in place": r"body.0 \(slice\)",
    "an element in place": r"body.0 \(select\)",
    "a view kept": r"it makes \(1, 8, 12, 10\) of \(1, 8, 120\)",
}


def answers_alike(net: nn.Module, folder: Path) -> None:
    images = make_images(6)
    dynamic = fracskip.convert(
        net, [8, "full"], example_input=images, image=fracskip.ImageConfig(size=(12, 10))
    )
    session = session_of(dynamic, folder)
    with torch.no_grad():
        wanted = net(images)
    found = session.run(pixels(images), decisions=session.forced("full", 6), budget=0.5)
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("idiom", [name for name in BLOCKS if name not in REFUSED])
def test_blocks_answer_alike(idiom: str, tmp_path: Path) -> None:
    answers_alike(make(BLOCKS[idiom]), tmp_path)


@pytest.mark.parametrize("idiom", HEADS)
def test_heads_answer_alike(idiom: str, tmp_path: Path) -> None:
    answers_alike(make(PLAIN, HEADS[idiom]), tmp_path)


OTHERS: dict[str, Forward] = {
    "minus a constant": residual(lambda m, x: m.a(x) - m.gamma[None, :, None, None]),
    "a constant minus": residual(lambda m, x: 1.5 - m.a(x)),
    "negative": residual(lambda m, x: -m.a(x)),
    "clamped to 0": residual(lambda m, x: m.a(x).clamp(min=0)),
}


@pytest.mark.parametrize("idiom", OTHERS)
def test_other_arithmetic_answers_alike(idiom: str, tmp_path: Path) -> None:
    answers_alike(make(OTHERS[idiom]), tmp_path)


@pytest.mark.parametrize("idiom", REFUSED)
def test_what_has_no_place_is_refused(idiom: str, tmp_path: Path) -> None:
    net = fracskip.convert(make(BLOCKS[idiom]), [8, "full"], example_input=make_images(1))
    with pytest.raises(ConfigError, match=REFUSED[idiom]):
        fracskip.export(net, tmp_path / "net.fsk")


@pytest.mark.parametrize("stream", ["float", "int8"])
def test_the_last_block_may_give_the_logits(stream: Any, tmp_path: Path) -> None:
    """A network ends with a part that is no block: here, the mean of one pixel."""
    net, images = make(PLAIN, lambda net, x: x.flatten(1)), make_images(6)
    net.stem = nn.Sequential(net.stem, nn.AdaptiveAvgPool2d(1))
    dynamic = fracskip.convert(
        net,
        ["skip", 8, "full"],
        example_input=images,
        calibration=[images],
        quant=QuantConfig(stream=stream),
    )
    session = session_of(dynamic, tmp_path)
    assert [op.op for op in session.plan.network.parts[-1].branch] == ["mean"]
    for option in range(3):
        decisions = np.full((6, len(dynamic.blocks)), option)
        with torch.no_grad():
            wanted = dynamic(images, decisions=torch.from_numpy(decisions)).logits
        found = session.run(pixels(images), decisions=decisions)
        np.testing.assert_allclose(found.logits, wanted, atol=1e-4)
