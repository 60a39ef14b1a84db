"""Float images are normalised ones: the one rule of all that take images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.data.normalised import NORMALISE, check_normalised, normalised_range
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import DataError
from fracskip.evaluation import predict
from fracskip.runtime import InferenceSession

CIFAR = ImageConfig(size=(8, 8))
PLAIN = ImageConfig(size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def normalise(pixels: NDArray[np.uint8], image: ImageConfig = CIFAR) -> NDArray[np.float32]:
    values = (pixels / 255 - np.array(image.mean)) / np.array(image.std)
    return values.astype(np.float32)


FLOATS = {
    # what, (images, normalisation, what is said of them; '' if they pass)
    "normalised": (normalise(PIXELS), CIFAR, ""),
    "one black image": (normalise(PIXELS[:1] * 0), CIFAR, ""),
    "one bright image": (normalise(PIXELS[:1] // 8 + 200), CIFAR, ""),
    "normal": (np.random.default_rng(1).normal(size=PIXELS.shape), CIFAR, ""),
    "zeros": (np.zeros(PIXELS.shape), CIFAR, ""),
    "shares": (PIXELS / 255, CIFAR, "values from 0 to 1 are not normalised"),
    "bright shares": (PIXELS / 512 + 0.4, CIFAR, "values from 0.4 to 0.898 are not normalised"),
    "levels": (PIXELS + 0.0, CIFAR, "values from 0 to 255 are not normalised"),
    "levels around 0": (PIXELS - 128.0, CIFAR, "values from -128 to 127 are not normalised"),
    "shares as asked for": (PIXELS / 255, PLAIN, ""),
    "normal for shares": (np.random.default_rng(1).normal(size=PIXELS.shape), PLAIN, ""),
    "levels for shares": (PIXELS + 0.0, PLAIN, "values from 0 to 255 are not normalised"),
    "NaN": (np.full(PIXELS.shape, np.nan), CIFAR, "NaN or infinite values"),
    "infinite": (np.full(PIXELS.shape, -np.inf), CIFAR, "NaN or infinite values"),
}


@pytest.fixture
def takers(make_net: Callable[..., DynamicNetwork], tmp_path: Path) -> Callable[..., Any]:
    """Everything that takes images (B, H, W, C), of a network with a normalisation."""
    from fracskip.deployment import export

    def make(image: ImageConfig) -> dict[str, Callable[..., Any]]:
        net = make_net(image=image.model_dump())
        export(net, tmp_path / "x.fsk")
        session = InferenceSession(tmp_path / "x.fsk")

        def first(images: NDArray[Any]) -> NDArray[Any]:
            return images.transpose(0, 3, 1, 2)

        return {
            "session": lambda images, **key: session.run(images, **key).logits,
            "preprocess": lambda images, **key: preprocess(first(images), image, **key).numpy(),
            "predict": lambda images, **key: predict(net, first(images), **key).probabilities,
            "predict, session": lambda images, **key: predict(session, images, **key).probabilities,
        }

    return make


@pytest.mark.parametrize("what", FLOATS)
def test_float_images(takers: Callable[..., Any], what: str) -> None:
    values, image, message = FLOATS[what]
    images = values.astype(np.float32)
    for take in takers(image).values():
        if not message:
            np.testing.assert_array_equal(take(images), take(images, normalised=True))
            continue
        with pytest.raises(DataError, match=message):
            take(images)
        if "NaN" not in message:
            assert np.isfinite(take(images, normalised=True)).all()


def test_what_the_refusal_says() -> None:
    assert normalised_range(CIFAR) == pytest.approx((-0.4914 / 0.247, (1 - 0.4822) / 0.2435))
    with pytest.raises(DataError) as caught:
        check_normalised(0, 255, CIFAR)
    assert str(caught.value) == (
        "float images with values from 0 to 255 are not normalised: by this network's mean and "
        f"std, pixels come to -1.989 to 2.126; give the uint8 pixels themselves or {NORMALISE}, "
        "with the network's image; if they are normalised, say so with normalised=True"
    )


def test_the_advice_leads_to_the_same_answers(takers: Callable[..., Any]) -> None:
    """As a user would write it."""
    session = takers(CIFAR)["session"]
    names = {"numpy": np, "pixels": PIXELS, "image": CIFAR}
    np.testing.assert_allclose(session(eval(NORMALISE, names)), session(PIXELS), atol=1e-4)
    with pytest.raises(DataError, match="type float64 do not fit: give uint8 pixels") as caught:
        session(PIXELS / 255)
    assert NORMALISE in str(caught.value)
