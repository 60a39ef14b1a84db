"""Resizing: the definition, said slowly, and what follows from it; the native engine to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fracskip.data.resampling import LARGEST, axis, resize
from fracskip.errors import DataError

try:
    from fracskip.runtime import _native as native
except ImportError:
    native: Any = None
ISAS = native.isas() if native else []

# (height, width) from and to: one axis alone, primes, single pixels, one pixel less, halves.
SIZES = [
    ((224, 224), (192, 192)),
    ((32, 40), (20, 24)),
    ((17, 31), (16, 30)),
    ((17, 31), (17, 13)),
    ((29, 5), (11, 5)),
    ((9, 9), (9, 9)),
    ((13, 64), (1, 1)),
    ((200, 3), (7, 2)),
    ((3, 300), (2, 9)),
    ((6, 101), (5, 33)),
    ((1, 1), (1, 1)),
]


def exact_weights(own: int, wanted: int, x: int) -> list[int]:
    """Of all inputs for one output, in Python's integers, by the words of docs/bundle.md."""
    spacing, exact = 2 * own, []
    for i in range(own):
        d = abs((2 * i + 1) * wanted - (2 * x + 1) * own)
        if d < spacing:
            exact.append(3 * d**3 - 5 * d**2 * spacing + 2 * spacing**3)
        elif d < 2 * spacing:
            exact.append(-(d**3) + 5 * d**2 * spacing - 8 * d * spacing**2 + 4 * spacing**3)
        else:
            exact.append(0)
    total = sum(exact)
    weights = [weight * 2**14 // total for weight in exact]
    weights[weights.index(max(weights))] += 2**14 - sum(weights)
    return weights


def slowly(pixels: list[int], wanted: int) -> list[int]:
    """One row."""
    out = []
    for x in range(wanted):
        pairs = zip(exact_weights(len(pixels), wanted, x), pixels, strict=True)
        out.append(min(max((sum(w * pixel for w, pixel in pairs) + 2**13) >> 14, 0), 255))
    return out


def slow(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    rows = np.apply_along_axis(lambda line: slowly(line.tolist(), size[0]), 0, image)
    return np.apply_along_axis(lambda line: slowly(line.tolist(), size[1]), 1, rows)


def pictures(size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Random ones, and one of the darkest and brightest pixels alone."""
    images = np.random.default_rng(size).integers(0, 256, (3, *size, channels), np.uint8)
    images[2] = np.where(images[2] < 128, 0, 255)
    return images


@pytest.mark.parametrize(("own", "size"), SIZES[1:], ids=str)
def test_pixels_are_those_of_the_definition(own: tuple[int, int], size: tuple[int, int]) -> None:
    images = pictures(own, 2)
    for image, found in zip(images, resize(images, size), strict=True):
        np.testing.assert_array_equal(found, slow(image, size))


@pytest.mark.skipif(not ISAS, reason="built without a C++ compiler")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("own", "size"), SIZES, ids=str)
def test_engines_give_the_same_bits(
    own: tuple[int, int], size: tuple[int, int], channels: int, isa: str
) -> None:
    images = pictures(own, channels)
    found = native.resize(images, *size, isa)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, resize(images, size))
    assert native.resize(images[:0], *size).shape == (0, *size, channels)


@pytest.mark.skipif(not ISAS, reason="built without a C++ compiler")
def test_engines_give_the_same_bits_at_random_sizes() -> None:
    draw = np.random.default_rng(1)
    for _ in range(60):
        own = tuple(int(n) for n in draw.integers(1, 70, 2))
        size = (int(draw.integers(1, own[0] + 1)), int(draw.integers(1, own[1] + 1)))
        images = pictures(own, int(draw.integers(1, 5)))
        wanted = resize(images, size)
        for isa in ISAS:
            np.testing.assert_array_equal(native.resize(images, *size, isa), wanted, str(own))


@pytest.mark.parametrize("own", [*range(1, 49), 224, 299, 512])
def test_weights_fit_what_engines_keep_them_in(own: int) -> None:
    """16 bits, and sums that stay below those of 16 bits after the shift."""
    for wanted in range(1, own + 1, 1 if own < 49 else 17):
        first, weights = axis(own, wanted)
        assert (weights.sum(1) == 2**14).all()
        assert abs(weights).max() < 2**15
        assert (255 * abs(weights).sum(1) + 2**13 < 2**29).all()
        assert first.min() >= 0
        assert first.max() + weights.shape[1] <= own


@pytest.mark.parametrize(("wanted", "x"), [(1, 0), (2, 1), (LARGEST - 1, LARGEST // 2)])
def test_the_largest_images_still_fit_64_bits(wanted: int, x: int) -> None:
    first, weights = axis(LARGEST, wanted)
    found = np.zeros(LARGEST, int)
    found[first[x] : first[x] + weights.shape[1]] = weights[x]
    np.testing.assert_array_equal(found, exact_weights(LARGEST, wanted, x))


def test_it_is_what_others_call_bicubic() -> None:
    """Pillow's filter is the same, in other fixed-point numbers and horizontally first."""
    image = np.asarray(
        Image.fromarray(pictures((12, 12), 3)[0]).resize((90, 90), Image.Resampling.BICUBIC)
    )
    wanted = np.asarray(Image.fromarray(image).resize((50, 41), Image.Resampling.BICUBIC))
    off = np.abs(resize(image[None], (41, 50))[0].astype(int) - wanted)
    assert off.max() <= 1
    assert (off == 0).mean() > 0.8


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_an_even_picture_stays_even(value: int) -> None:
    images = np.full((1, 23, 31, 3), value, np.uint8)
    assert (resize(images, (7, 30)) == value).all()


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (np.zeros((1, 8, 8), np.uint8), (4, 4), "images of shape (1, 8, 8) and type uint8 can't"),
        (np.zeros((1, 8, 8, 3), np.float32), (4, 4), "type float32 can't be resized: uint8 pixels"),
        (np.zeros((1, 8, 8, 3), np.uint8), (9, 8), "images of height 8 can't be brought to 9"),
        (np.zeros((1, 8, 8, 3), np.uint8), (8, 0), "images of width 8 can't be brought to 0"),
        (np.zeros((0, 16385, 8, 3), np.uint8), (8, 8), "height, which may be 16384 at most"),
    ],
)
def test_what_can_not_be_resized(images: Any, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError) as caught:
        resize(images, size)
    assert message in str(caught.value)
    if ISAS:
        with pytest.raises((TypeError, ValueError), match=r"images|uint8"):
            native.resize(images, *size)
