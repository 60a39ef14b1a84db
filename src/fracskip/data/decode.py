"""One encoded image -> uint8 (H, W, C), whatever its format, mode and size.

How everything that is no plain 8-bit image is read:

- turned as its EXIF orientation says; of an animation, the first frame;
- transparency (alpha, or a transparent palette entry) is composited over white;
- 16-bit grey is scaled to 8 bits by rounding v / 257 (65535 -> 255); deeper pixels are refused;
- CMYK, palette, 1-bit and other modes are converted to RGB or grey (ITU-R 601 luma); embedded
  colour profiles are ignored;
- another size is fitted: the largest centred window of the target's aspect is resampled
  bilinearly (with antialiasing) to the target. That is scaling the shorter side to the target and
  cropping the centre, without the enlarged image in between. An image that already has the exact
  size is left untouched;
- where `image.resize` is given, the target is `image.view`, and the centre is cut out of it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fracskip.config import ImageConfig
from fracskip.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485
"""The largest image that is decoded, in pixels: the size above which Pillow suspects a bomb."""

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_WHITE = (255, 255, 255, 255)


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
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.load()
            return _plain(ImageOps.exif_transpose(picture))
    except DataError as error:
        raise DataError(f"{label}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{label} does not exist: give the path of an image file") from None
    except _BOMBS:
        raise DataError(
            f"{label} is larger than {MAX_PIXELS:,} pixels, the most that is decoded: scale it down"
        ) from None
    except UnidentifiedImageError:
        reason = "empty" if _is_empty(source) else "not an image that can be read"
        raise DataError(f"{label} is {reason}: use one of {', '.join(FORMATS)}") from None
    except Exception as error:  # a broken file makes Pillow's parsers raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{label} is damaged or cannot be decoded ({reason}): replace or remove it"
        ) from error


def fit(picture: Image.Image, image: ImageConfig) -> NDArray[np.uint8]:
    """Brings a picture of mode 'L' or 'RGB' to the size and channels that `image` asks for.

    Returns:
        uint8 (H, W, C), C-contiguous.
    """
    height, width = image.view.size
    mode = "L" if image.channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
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


def _plain(picture: Image.Image) -> Image.Image:
    """Converts any mode to 'L' or 'RGB'."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise DataError("floating-point pixels have no agreed range: save it with 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture).convert(
            "RGB"
        )
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits; some formats hand it over in 32-bit integers."""
    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise DataError("32-bit pixels have no agreed range: save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _label(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    return f"image {source if isinstance(source, Path) else getattr(source, 'name', 'stream')}"


def _is_empty(source: Path | bytes | BinaryIO) -> bool:
    if isinstance(source, bytes):
        return not source
    if isinstance(source, Path):
        return source.stat().st_size == 0
    return source.seekable() and source.seek(0, io.SEEK_END) == 0
