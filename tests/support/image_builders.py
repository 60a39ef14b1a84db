"""Encoded images that Pillow does not write, chunk by chunk."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def png(
    size: tuple[int, int],
    bits: int,
    colour: int,
    rows: bytes,
    *,
    before: bytes = b"",
    tail: int = 1,
) -> bytes:
    """A PNG.

    Args:
        size: Width and height.
        bits: Of a sample.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        rows: Filter bytes and samples.
        before: Chunks between header and pixels.
        tail: How often the pixels' rows are repeated.
    """
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    packer = zlib.compressobj(1)
    data = b"".join([*(packer.compress(rows) for _ in range(tail)), packer.flush()])
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def tiff(
    size: tuple[int, int],
    bits: int,
    pixels: bytes,
    *,
    order: str = "<",
    photometric: int = 1,
    sample_format: int = 1,
    more: Sequence[tuple[int, int]] = (),
    strips: int = 1,
) -> bytes:
    """A grey TIFF of one strip, without compression.

    Args:
        size: Width and height.
        bits: Of a sample.
        pixels: As they lie in the file.
        order: '<' or '>'.
        photometric: 0 if larger is darker.
        sample_format: 1 unsigned, 2 signed.
        more: Further tags, and a value of 32 bits each, instead of what is said here.
        strips: How many are announced.
    """
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: size[1], 279: len(pixels), 339: sample_format, **dict(more)}
    entry = struct.Struct(order + "HHII")
    entries = [
        entry.pack(tag, 4, strips if tag == 273 else 1, value)
        for tag, value in sorted(tags.items())
    ]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(pixels))
    count = struct.pack(order + "H", len(entries))
    return start + pixels + count + b"".join(entries) + bytes(4)


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """EXIF that says an orientation, without a prefix."""
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def exif_bomb(count: int, size: int) -> bytes:
    """Tags that all say that their value is the same `size` bytes."""
    entries = [struct.pack("<HHII", 1000 + tag, 7, size, 8) for tag in range(count)]
    return b"II*\0" + struct.pack("<IH", 8, count) + b"".join(entries) + bytes(4) + bytes(size)
