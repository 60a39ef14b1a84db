"""Encoded images, before anything is decoded: their size, and nothing but what pixels need.

Metadata - EXIF, colour profiles, texts, comments, further pictures - are dropped here, so that
however large or damaged they are, decoding takes neither longer nor more memory. Of all of them the
orientation alone is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from fracskip.data.containers import jpeg, others, png, tiff
from fracskip.data.containers.base import Container

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM")
"""All that are read, in words."""

SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm".split()
)
"""Of files that hold images, in lower case; upper case is read too."""

_Reader = Callable[[bytes], Container]
_READERS: tuple[tuple[bytes, _Reader], ...] = (
    (b"\xff\xd8\xff", jpeg.read),
    (png.SIGNATURE, png.read),
    (b"GIF87a", others.read_gif),
    (b"GIF89a", others.read_gif),
    (b"BM", others.read_bmp),
    *((start, tiff.read) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"P%d" % digit, others.read_netpbm) for digit in range(1, 7)),
)


def inspect(content: bytes) -> Container | None:
    """Reads an encoded image's header.

    Returns:
        The image; None where it is of no format that is read.

    Raises:
        DataError: saying, without the image's name, why it is refused.
        Exception: of almost any kind, if the header is damaged.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return others.read_webp(content)
    for start, read in _READERS:
        if content.startswith(start):
            return read(content)
    return None


__all__ = ["FORMATS", "SUFFIXES", "Container", "inspect"]
