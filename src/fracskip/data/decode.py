"""One encoded image -> uint8 (H, W, C), whatever its format, mode and size.

JPEG, PNG, WebP, GIF, BMP, TIFF and Netpbm (P4, P5, P6) are read, by content and not by name. How
everything that is no plain 8-bit image is read:

- turned as its EXIF orientation says, or XMP's; of an animation, the first picture; all other
  metadata are ignored, and damaged ones too;
- transparency is composited over white, at every depth: alpha, transparent palette entries, and a
  transparent colour, which is compared at the depth of the file;
- grey of 12 and 16 bits is scaled to 8 by rounding (of 16: v / 257, 65535 -> 255), colour of 16
  keeps its upper 8; signed, 32-bit and floating-point pixels are refused;
- CMYK, palette, 1-bit and other modes are converted to RGB or grey (ITU-R 601 luma); embedded
  colour profiles are ignored;
- another size is fitted: the largest centred window of the target's aspect is resampled
  bilinearly (with antialiasing) to the target. That is scaling the shorter side to the target and
  cropping the centre, without the enlarged image in between. An image that already has the exact
  size is left untouched;
- where `image.resize` is given, the target is `image.view`, and the centre is cut out of it.

What would take too much is refused before it is decoded: files above `MAX_FILE_BYTES`, pictures
above `MAX_PIXELS`, progressive ones of too many scans, and those whose decoding takes more than
`MAX_MEMORY`. A JPEG that would is
decoded at half its size, which is still far larger than what networks take.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fracskip.config import ImageConfig
from fracskip.data.containers import FORMATS, inspect
from fracskip.data.pixels import memory, open_container, upright
from fracskip.data.quiet import quiet
from fracskip.errors import DataError

MAX_FILE_BYTES = 256 * 2**20
"""The largest file that is decoded; `MAX_PIXELS` of 8-bit RGB without compression."""

MAX_PIXELS = 89_478_485
"""The largest image that is decoded, in pixels: the size above which Pillow suspects a bomb."""

MAX_SCANNED = 1_000_000_000
"""Pixels times scans at most: of a JPEG, a scan of a few bytes has every pixel visited."""

MAX_MEMORY = 400 * 2**20
"""The most that decoding may take, in bytes, besides the file's own."""

MAX_REASON = 200
"""Characters of a decoder's own words that are repeated."""


def decode_image(source: Path | bytes | BinaryIO, image: ImageConfig) -> NDArray[np.uint8]:
    """Decodes one image to the size and channels that `image` asks for.

    Args:
        source: A file's path, its bytes, or a binary stream.
        image: The wanted size and channels.

    Returns:
        uint8 (H, W, C), C-contiguous.

    Raises:
        DataError: naming the source and what is wrong with it.
    """
    return fit(open_picture(source), image)


def open_picture(source: Path | bytes | BinaryIO) -> Image.Image:
    """Reads one image in full, as an upright picture of mode 'L' or 'RGB'.

    Raises:
        DataError: naming the source and what is wrong with it.
    """
    label = _label(source)
    try:
        content = _read(source)
        with quiet():
            return _decoded(content)
    except DataError as error:
        raise DataError(f"{label} {error}") from None
    except Exception as error:  # a broken file makes parsers raise almost anything
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise DataError(
            f"{label} is damaged or cannot be decoded ({reason}): replace or remove it"
        ) from error


def _read(source: Path | bytes | BinaryIO) -> bytes:
    """All of an encoded image.

    Raises:
        DataError: if it is no file, or larger than `MAX_FILE_BYTES`; the size alone is read then.
    """
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, Path):
        content = _read_file(source)
    else:
        if source.seekable():
            source.seek(0)
        content = source.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise _too_large()
    return content


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("cannot be decoded, as it is no file: give the path of an image")
        if status.st_size > MAX_FILE_BYTES:
            raise _too_large()
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("does not exist: give the path of an image file") from None
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror}): check its name and that you may read it"
        ) from None


def _too_large() -> DataError:
    return DataError(
        f"is larger than {MAX_FILE_BYTES // 2**20} MiB, the most that is read: scale it down"
    )


def _decoded(content: bytes) -> Image.Image:
    """The picture in an encoded image."""
    found = inspect(content)
    if found is None:
        reason = "not an image that can be read" if content else "empty"
        raise DataError(f"is {reason}: use one of {', '.join(FORMATS)}")
    if found.pixels > MAX_PIXELS:
        raise DataError(
            f"is larger than {MAX_PIXELS:,} pixels, the most that is decoded: scale it down"
        )
    if found.scans * found.pixels > MAX_SCANNED:
        raise DataError(
            f"has {found.scans:,} scans of {found.pixels:,} pixels, "
            f"{MAX_SCANNED // found.pixels:,} are decoded at most: save it anew"
        )
    picture = open_container(found)
    if memory(picture, found) > MAX_MEMORY and found.shrinks:
        picture.draft(None, (picture.width // 2, picture.height // 2))
    if (needed := memory(picture, found)) > MAX_MEMORY:
        raise DataError(
            f"has {found.width} x {found.height} pixels, which take {needed / 2**20:.0f} MiB to "
            f"decode, more than the {MAX_MEMORY // 2**20} MiB that are allowed: scale it down"
        )
    return upright(picture, found)


def fit(picture: Image.Image, image: ImageConfig) -> NDArray[np.uint8]:
    """Brings a picture of mode 'L' or 'RGB' to the size and channels that `image` asks for.

    Returns:
        uint8 (H, W, C), C-contiguous.
    """
    height, width = image.view.size
    mode = "L" if image.channels == 1 else "RGB"
    if mode == "L":
        picture = picture.convert(mode)
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    picture = picture.convert(mode)  # grey becomes RGB when it is small: the values are the same
    pixels = np.array(picture, dtype=np.uint8).reshape(height, width, image.channels)
    return cut_centre(pixels, image.size)


def cut_centre(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The centres of images.

    Args:
        pixels: uint8 (..., H, W, C).
        size: Height and width to cut out, H and W at most.

    Returns:
        uint8 (..., *size, C), C-contiguous; the images themselves where they have that size.
    """
    (height, width), (rows, columns) = pixels.shape[-3:-1], size
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(pixels[..., top : top + rows, left : left + columns, :])


def _label(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    return f"image {source if isinstance(source, Path) else getattr(source, 'name', 'stream')}"
