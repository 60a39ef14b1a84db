"""Damaged images of every format that is read: small sound ones, with a few things changed.

All draw from the `random.Random` that they are given.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from support.hostile_files import damaged_bytes
from support.image_builders import chunk, encode, exif, png

PNG_START = b"\x89PNG\r\n\x1a\n"
_EXTREMES = [0, 1, 2, 7, 255, 256, 9_400, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]


def sound_images() -> dict[str, bytes]:
    """Images of 24 x 20 pixels by format and mode."""
    pixels = np.random.default_rng(5).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    alpha = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC)
    rgb, grey = alpha.convert("RGB"), alpha.convert("L")
    palette, other = rgb.quantize(16), rgb.rotate(180).quantize(16)
    turned = b"Exif\0\0" + exif(6)
    return {
        "PNG": encode(rgb, "PNG"),
        "PNG, alpha": encode(alpha, "PNG"),
        "PNG, palette": encode(palette, "PNG", transparency=3),
        "PNG, 16 bits": encode(Image.fromarray(np.arange(480, dtype=np.uint16) * 137), "PNG"),
        "PNG, colour of 16 bits": png((24, 20), 16, 2, (b"\0" + bytes(range(144))) * 20),
        "JPEG": encode(rgb, "JPEG", exif=turned),
        "JPEG, progressive": encode(rgb, "JPEG", progressive=True),
        "JPEG, grey": encode(grey, "JPEG", restart_marker_rows=1),
        "JPEG, CMYK": encode(rgb.convert("CMYK"), "JPEG"),
        "WebP": encode(rgb, "WEBP", quality=60, exif=turned),
        "WebP, lossless": encode(alpha, "WEBP", lossless=True),
        "WebP, animated": encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)]),
        "GIF": encode(palette, "GIF", transparency=3),
        "GIF, animated": encode(palette, "GIF", save_all=True, append_images=[other]),
        "BMP": encode(rgb, "BMP"),
        "BMP, palette": encode(palette, "BMP"),
        "TIFF": encode(rgb, "TIFF", exif=exif(6)),
        "TIFF, LZW": encode(alpha, "TIFF", compression="tiff_lzw"),
        "TIFF, deflate": encode(grey, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, JPEG": encode(rgb, "TIFF", compression="jpeg"),
        "TIFF, fax": encode(grey.convert("1"), "TIFF", compression="group4"),
        "PPM": encode(rgb, "PPM"),
        "PGM": encode(grey, "PPM"),
        "PBM": encode(grey.convert("1"), "PPM"),
    }


def damaged_image(draw: random.Random, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of a sound image, and what one to three changes made of it."""
    name = draw.choice(list(sound))
    data = sound[name]
    for _ in range(draw.choice([1, 1, 2, 3])):
        data = draw.choice(_CHANGES)(draw, data) or data  # never empty: there is one to change
    return name, data


def _flipped(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _lying(draw: random.Random, data: bytes) -> bytes:
    """A field near the beginning, where sizes are, says something extreme."""
    kind = draw.choice("<H >H <I >I B".split())
    width = struct.calcsize(kind)
    at = draw.randrange(max(1, min(len(data), draw.choice([40, 200])) - width))
    value = draw.choice(_EXTREMES) % 256**width
    if data[:2] in (b"P4", b"P5", b"P6"):
        return re.sub(
            rb"\d+(?=\s)", b"%d" % draw.choice(_EXTREMES), data, count=draw.choice([1, 2])
        )
    return data[:at] + struct.pack(kind, value) + data[at + width :]


def _rearranged(draw: random.Random, data: bytes) -> bytes:
    """A chunk, segment or block is left out, repeated, moved, or damaged with a fitting length."""
    parts = pieces(data)
    at, to = draw.randrange(len(parts)), draw.randrange(len(parts))
    change = draw.choice(["leave out", "repeat", "many", "move", "damage"])
    if change == "damage":
        parts[at] = _flipped(draw, parts[at] or b"\0")
    elif change in ("repeat", "many"):
        parts[to:to] = [parts[at]] * (1 if change == "repeat" else 300)
    else:
        part = parts.pop(at)
        if change == "move":
            parts.insert(to, part)
    return b"".join(parts)


def _sealed(draw: random.Random, data: bytes) -> bytes:
    """A PNG whose chunks are damaged within, with checksums that fit; others: a piece of them."""
    if not data.startswith(PNG_START):
        return _rearranged(draw, data)
    parts = pieces(data)
    at = draw.randrange(len(parts))
    kind, body = parts[at][4:8], parts[at][8:-4]
    change = draw.choice([_flipped, _lying, damaged_bytes])
    parts[at] = chunk(kind, change(draw, body) if body else draw.randbytes(4))
    return b"".join(parts) if at else data[:8] + b"".join(parts[1:])


def pieces(data: bytes) -> list[bytes]:
    """A file's chunks, segments or blocks, roughly; joined they are the file."""
    if data.startswith(PNG_START):
        return _chunks(data, 8, ">I", 12, 1)
    if data.startswith(b"RIFF"):
        return _chunks(data, 12, "<I", 8, 2, 4)
    if data.startswith(b"\xff\xd8"):
        return re.split(rb"(?=\xff[^\x00\xff])", data)
    if data.startswith(b"GIF"):
        return re.split(rb"(?=[!,])", data)
    step = 12 if data[:2] in (b"II", b"MM") else max(1, len(data) // 16)
    return [data[at : at + step] for at in range(0, len(data), step)]


def _chunks(
    data: bytes, begin: int, length: str, more: int, even: int, offset: int = 0
) -> list[bytes]:
    parts, at = [data[:begin]], begin
    while at + offset + 4 <= len(data):
        (size,) = struct.unpack_from(length, data, at + offset)
        end = at + more + size + size % even
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [
    _flipped, _lying, _lying, _rearranged, _sealed, damaged_bytes
]  # fmt: skip
