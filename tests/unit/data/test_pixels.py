"""Transparency and depth: the same at every depth that files have."""

import struct

import numpy as np
import pytest
from PIL import Image

from fracskip.data.containers import Container
from fracskip.data.decode import open_picture
from fracskip.data.pixels import upright
from fracskip.errors import DataError
from support.image_builders import chunk, png, shorts, tiff

WHITE = [255, 255, 255]


def keyed(*values: int) -> bytes:
    return chunk(b"tRNS", shorts(*values))


def two(bits: int, colour: int, samples: bytes, before: bytes = b"") -> bytes:
    """Two pixels beside each other."""
    return png((2, 1), bits, colour, b"\0" + samples, before=before)


PALETTE = chunk(b"PLTE", bytes(range(12)))
# The first pixel is transparent, unless the comment says otherwise; the second is not.
TRANSPARENT = {
    "grey of 1 bit": (two(1, 0, b"\x40", keyed(0)), [255, 255]),
    "grey of 1 bit, where white is": (two(1, 0, b"\x40", keyed(1)), [0, 255]),
    "grey of 2 bits": (two(2, 0, bytes([0b01100000]), keyed(1)), [255, 170]),
    "grey of 4 bits": (two(4, 0, b"\x37", keyed(3)), [255, 119]),
    "grey of 8 bits": (two(8, 0, b"\3\7", keyed(3)), [255, 7]),
    "grey of 8 bits, and no pixel is": (two(8, 0, b"\3\7", keyed(4)), [3, 7]),
    "grey of 16 bits": (two(16, 0, shorts(1000, 40_000), keyed(1000)), [255, 156]),
    "grey of 16 bits, nearly": (two(16, 0, shorts(1000, 40_000), keyed(1001)), [4, 156]),
    "RGB of 8 bits": (two(8, 2, bytes([1, 2, 3, 1, 2, 4]), keyed(1, 2, 3)), [WHITE, [1, 2, 4]]),
    "RGB of 16 bits": (
        two(16, 2, shorts(1000, 2000, 3000, 1000, 2000, 3001), keyed(1000, 2000, 3000)),
        [WHITE, [3, 7, 11]],
    ),
    "palette of 2 bits": (
        two(2, 3, bytes([0b01100000]), PALETTE + chunk(b"tRNS", b"\xff\0")),
        [WHITE, [6, 7, 8]],
    ),
    "grey and alpha of 8 bits": (two(8, 4, bytes([9, 0, 9, 255])), [WHITE, [9, 9, 9]]),
    "grey and alpha of 16 bits": (
        two(16, 4, shorts(1000, 0, 40_000, 65_535)),
        [WHITE, [156, 156, 156]],
    ),
    "a fifth of alpha of 16 bits": (
        two(16, 4, shorts(0, 13_107, 40_000, 65_535)),
        [[204, 204, 204], [156, 156, 156]],
    ),
    "RGB and alpha of 16 bits": (
        two(16, 6, shorts(1000, 2000, 3000, 0, 1000, 2000, 3000, 65_535)),
        [WHITE, [3, 7, 11]],
    ),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_pixels_are_white_at_every_depth(case: str) -> None:
    content, expected = TRANSPARENT[case]
    assert np.asarray(open_picture(content)).tolist() == [expected]


def test_a_colour_is_looked_for_in_all_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fracskip.data.pixels._STRIP_PIXELS", 6)
    values = np.arange(20, dtype=np.uint8).reshape(5, 4) % 3
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    found = np.asarray(open_picture(png((4, 5), 8, 0, rows, before=keyed(2))))
    np.testing.assert_array_equal(found, np.where(values == 2, 255, values))


GREY16 = {"<": struct.pack("<4H", 0, 1000, 40_000, 65_535), ">": shorts(0, 1000, 40_000, 65_535)}
DEEP = {
    "16 bits": (tiff((4, 1), 16, GREY16["<"]), [0, 4, 156, 255]),
    "16 bits, MinIsWhite": (tiff((4, 1), 16, GREY16["<"], photometric=0), [255, 251, 99, 0]),
    "16 bits, big-endian": (tiff((4, 1), 16, GREY16[">"], order=">"), [0, 4, 156, 255]),
    "16 bits, big-endian, MinIsWhite": (
        tiff((4, 1), 16, GREY16[">"], order=">", photometric=0),
        [255, 251, 99, 0],
    ),
    "12 bits": (tiff((2, 1), 12, bytes([0x80, 0x0F, 0xFF])), [128, 255]),
    "8 bits, MinIsWhite": (tiff((3, 1), 8, bytes([0, 55, 255]), photometric=0), [255, 200, 0]),
    "16 bits of PGM": (b"P5 # of\n4 1\n65535\n" + GREY16[">"], [0, 4, 156, 255]),
    "8 bits of PPM": (b"P6 1 1 255\n\x01\x02\x03", [[1, 2, 3]]),
    "1 bit of PBM": (b"P4\n2 1\n\x40", [255, 0]),
}


@pytest.mark.parametrize("case", DEEP)
def test_depths_are_scaled_to_8_bits(case: str) -> None:
    content, expected = DEEP[case]
    assert np.asarray(open_picture(content)).tolist() == [expected]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff((1, 1), 32, struct.pack("<I", 200)), "has 32-bit pixels, which have no agreed range"),
        (tiff((1, 1), 32, bytes(4), sample_format=2), "has signed 32-bit pixels"),
        (tiff((1, 1), 16, bytes(2), sample_format=2), "has signed 16-bit pixels"),
        (tiff((1, 1), 8, b"\xff", sample_format=2), "has signed 8-bit pixels"),
        (b"P5 1 1 100\n\0", "is a Netpbm file, of which P4, P5 with values up to 255 or 65535"),
        (b"P3 1 1 255\n1 2 3", "is a Netpbm file, of which"),
    ],
)
def test_values_without_an_agreed_range(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_picture(content)


def test_grey_that_is_weighed_by_its_alpha() -> None:
    """As TIFFs with ExtraSamples 1 are decoded: half of a grey that is 100, over white."""
    picture = Image.frombytes("La", (1, 1), bytes([50, 128]))
    over = upright(picture, Container("TIFF", b"", width=1, height=1))
    assert np.asarray(over).tolist() == [[[177, 177, 177]]]
