"""From a decoded picture of any mode to an upright one of mode 'L' or 'RGB'.

Copies are made strip by strip, so that no more than two whole pictures are in memory at a time;
`memory` says how much that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fracskip.data.containers import Container
from fracskip.errors import DataError

_STRIP_PIXELS = 2**20
_WHITE = (255, 255, 255, 255)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what undoes an orientation


def open_container(found: Container) -> Image.Image:
    """Opens an image; nothing is decoded yet.

    Raises:
        DataError: if the decoder can't read the header, or finds another size in it.
    """
    try:
        picture = Image.open(BytesIO(found.content), formats=[found.kind])
    except UnidentifiedImageError:
        raise DataError(
            f"is a damaged {found.kind}, or one of a kind that is not read: save it anew"
        ) from None
    if picture.size != (found.width, found.height):
        raise DataError("has two sizes that differ: it is damaged, replace or remove it")
    return picture


def memory(picture: Image.Image, found: Container) -> int:
    """Bytes that decoding `picture` and `upright` take at most, by its size and mode."""
    grey = picture.mode in ("1", "L") or picture.mode.startswith("I")
    own = 1 if picture.mode in ("1", "L", "P") else 2 if picture.mode.startswith("I;16") else 4
    result = 1 if grey else 4
    converted = 0 if picture.mode in ("L", "RGB") else result
    if _is_split(found):
        converted = 2 * result  # decoded twice: one for the time that it takes
    turned = result if found.orientation in _TURNS else 0
    return picture.width * picture.height * max(own + converted, result + turned) + found.buffers


def upright(picture: Image.Image, found: Container) -> Image.Image:
    """Decodes a picture and brings it to mode 'L' or 'RGB', transparent pixels over white.

    Raises:
        DataError: if its pixels have no agreed range.
    """
    picture.load()
    picture.info.pop("transparency" if found.key else "", None)
    picture = _plain(picture, found)
    turn = _TURNS.get(found.orientation)
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image, found: Container) -> Image.Image:
    if picture.mode.startswith("I"):
        return _from_16_bits(picture, found)
    if picture.mode == "F":
        raise DataError(
            "has floating-point pixels, which have no agreed range: save it with 8 or 16 bits"
        )
    if picture.has_transparency_data:
        return _over_white(picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if found.key:
        _whiten(picture, found)
    return picture


def _strips(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) from top to bottom."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield 0, top, picture.width, min(top + rows, picture.height)


def _over_white(picture: Image.Image) -> Image.Image:
    out = Image.new("RGB", picture.size)
    for box in _strips(picture):
        part = picture.crop(box)
        if part.mode == "La":  # weighed by its alpha, which has to be undone first
            part = part.convert("LA")
        if part.mode != "RGBA":
            part = part.convert("RGBA")
        over = Image.alpha_composite(Image.new("RGBA", part.size, _WHITE), part)
        out.paste(over.convert("RGB"), box)
    return out


def _from_16_bits(picture: Image.Image, found: Container) -> Image.Image:
    """Scales grey of more than 8 bits to 8; some formats hand it over in 32-bit integers."""
    top = 2**found.bits - 1
    out = Image.new("L", picture.size)
    for box in _strips(picture):
        values = np.asarray(picture.crop(box)).astype(np.int64)
        scaled = ((top - values if found.inverted else values) * 255 + top // 2) // top
        if found.key:
            scaled[values == found.key[0]] = 255  # compared before it is scaled
        out.paste(Image.fromarray(scaled.astype(np.uint8)), box)
    return out


def _is_split(found: Container) -> bool:
    """Whether a colour of 16 bits is looked for, of which pictures hold the upper half."""
    return found.bits == 16 and len(found.key) == 3


def _whiten(picture: Image.Image, found: Container) -> None:
    """Makes the pixels white that have the transparent colour, in place."""
    low = _low_bytes(found) if _is_split(found) else None
    top = 2**found.bits - 1
    samples = [value & top for value in found.key]
    # As decoders widen samples: 16 bits to their upper half, fewer than 8 to the whole range.
    key = [value >> 8 if found.bits == 16 else value * 255 // top for value in samples]
    for box in _strips(picture):
        match = _equal(picture.crop(box), key)
        if low is not None:
            match &= _equal(low.crop(box), [value & 255 for value in samples])
        picture.paste(_WHITE[: len(key)] if len(key) > 1 else 255, box, Image.fromarray(match))


def _equal(part: Image.Image, key: list[int]) -> NDArray[np.bool_]:
    """Which pixels (H, W) have a colour."""
    equal = np.ones((part.height, part.width), dtype=np.bool_)
    for band, value in zip(part.split(), key, strict=True):
        equal &= np.asarray(band) == value
    return equal


def _low_bytes(found: Container) -> Image.Image:
    """The lower bytes of a PNG in 16-bit RGB, which is decoded to its upper ones."""
    picture = open_container(found)
    (tile,) = picture.tile  # type: ignore[attr-defined]  # that of an ImageFile
    # The samples are big-endian; read as little-endian ones their other half is kept.
    picture.tile = [(*tile[:3], "RGB;16L")]  # type: ignore[attr-defined]
    picture.load()
    return picture
