"""WebP, GIF, BMP and Netpbm: what their headers say, and how they are freed of metadata."""

from __future__ import annotations

import re
import struct

from fracskip.data.containers.base import Container, check_pieces
from fracskip.data.containers.exif import orientation
from fracskip.errors import DataError

MAX_SLOW = 4 * 2**20
"""Bytes and pixels of what is decoded slowly, run-length coded BMP."""

_WEBP_CANVASES = 12  # bytes a pixel: two canvases, and the pixels that are handed over
_RLE8, _RLE4 = 1, 2
_GIF_CONTROL = 0xF9
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([0-9]{1,9})")


def read_webp(content: bytes) -> Container:
    """Finds size and orientation among the chunks of RIFF.

    Raises:
        DataError: if it has too many chunks.
        struct.error: if it is cut short.
    """
    kind, header = content[12:16], content[20:30]
    if kind == b"VP8X":
        width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", header, 1)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", header, 6))
    at, count, found = 12, 0, {b"EXIF": b"", b"XMP ": b""}
    while kind == b"VP8X" and at + 8 <= len(content):
        count += 1
        check_pieces(count, "chunks")
        name, length = struct.unpack_from("<4sI", content, at)
        if name in found:
            found[name] = content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return Container(
        "WEBP",
        content,
        width,
        height,
        orientation=orientation(found[b"EXIF"], found[b"XMP "]),
        buffers=_WEBP_CANVASES * width * height,
    )


def read_gif(content: bytes) -> Container:
    """Drops extensions before the first picture, but those that say what is transparent.

    Raises:
        DataError: if it has too many blocks, or no picture.
        struct.error: if it is cut short.
    """
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    kept, count = [content[:at]], 0
    while content[at : at + 1] == b"!":
        start, at = at, at + 2
        while size := content[at]:
            count += 1
            check_pieces(count, "blocks")
            at += 1 + size
        at += 1
        if content[start + 1] == _GIF_CONTROL:
            kept.append(content[start:at])
    if content[at : at + 1] != b",":
        raise DataError("holds no picture: replace or remove it")
    left, top, across, down = struct.unpack_from("<4H", content, at + 1)
    kept.append(content[at:])
    return Container("GIF", b"".join(kept), max(width, left + across), max(height, top + down))


def read_bmp(content: bytes) -> Container:
    """Finds the size.

    Raises:
        DataError: if it is run-length coded and large.
        struct.error: if it is cut short.
    """
    (header,) = struct.unpack_from("<I", content, 14)
    compression = 0
    if header == 12:
        width, height = struct.unpack_from("<HH", content, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
    width, height = abs(width), abs(height)
    if compression in (_RLE8, _RLE4) and max(len(content), width * height) > MAX_SLOW:
        raise DataError(
            f"is a run-length coded BMP of {width} x {height} pixels in {len(content):,} bytes, "
            f"read up to {MAX_SLOW:,} of either: save it uncoded, or as PNG"
        )
    return Container("BMP", content, width, height)


def read_netpbm(content: bytes) -> Container:
    """Writes the header anew, without comments.

    Raises:
        DataError: if it is none of P4, P5 with 8 or 16 bits, and P6 with 8 bits.
    """
    kind, head = content[:2], content[:4096]
    wanted = 2 if kind == b"P4" else 3
    numbers: list[int] = []
    at = 2
    while len(numbers) < wanted and (match := _TOKEN.match(head, at)):
        numbers.append(int(match[1]))
        at = match.end()
    top = numbers[2] if len(numbers) == 3 else 1
    known = {b"P4": (1,), b"P5": (255, 65535), b"P6": (255,)}
    if len(numbers) < wanted or top not in known.get(kind, ()):
        raise DataError(
            "is a Netpbm file, of which P4, P5 with values up to 255 or 65535, and P6 with values "
            "up to 255 are read: save it as PNG"
        )
    lines = b"\n".join([kind, b"%d %d" % tuple(numbers[:2]), *(b"%d" % n for n in numbers[2:])])
    return Container(
        "PPM",
        lines + b"\n" + content[at + 1 :],
        width=numbers[0],
        height=numbers[1],
        bits=top.bit_length(),
    )
