"""PNG: the chunks that pixels need. https://www.w3.org/TR/png-3/."""

from __future__ import annotations

import struct
import zlib

from fracskip.data.containers.base import MAX_METADATA_BYTES, Container, check_pieces
from fracskip.data.containers.exif import orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def read(content: bytes) -> Container:
    """Drops everything but header, palette, transparency and pixels; an animation's first picture.

    Raises:
        DataError: if it has too many chunks.
        struct.error: if it has no header.
    """
    header, key, found = b"", b"", {b"eXIf": b"", _RAW_EXIF: b"", _XMP: b""}
    kept, data, at, count = [SIGNATURE], [], len(SIGNATURE), 0
    ended = False
    while at + 8 <= len(content) and not ended:
        count += 1
        check_pieces(count, "chunks")
        length, kind = struct.unpack_from(">I4s", content, at)
        body, end = content[at + 8 : at + 8 + length], at + 12 + length
        if kind == b"IHDR" and not header:
            header = body
            kept.append(content[at:end])
        elif kind == b"IDAT":
            data.append(body)
        elif kind == b"PLTE" or (kind == b"tRNS" and header[9:10] == bytes([_PALETTE])):
            kept.append(content[at:end])
        elif kind == b"tRNS":
            key = body
        elif kind == b"eXIf":
            found[kind] = body
        elif kind in _TEXTS:
            keyword, _, rest = body[: MAX_METADATA_BYTES + 80].partition(b"\0")
            if keyword in found:
                found[keyword] = _text(kind, rest)
        ended = kind == b"IEND"
        at = end
    width, height, bits, colour = struct.unpack_from(">IIBB", header)
    kept.append(_chunk(b"IDAT", b"".join(data)))
    if ended:
        kept.append(_chunk(b"IEND", b""))
    samples = {_GREY: 1, _RGB: 3}.get(colour, 0)
    return Container(
        "PNG",
        b"".join(kept),
        width,
        height,
        orientation=orientation(found[b"eXIf"] or _unhex(found[_RAW_EXIF]), found[_XMP]),
        bits=bits,
        key=struct.unpack_from(f">{samples}H", key) if len(key) >= 2 * samples else (),
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _text(kind: bytes, rest: bytes) -> bytes:
    """A text chunk's text, from behind its keyword; empty where it is damaged or too long."""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if not packed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def _unhex(profile: bytes) -> bytes:
    """A raw profile: a line break, its name, its length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex("".join(profile.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""
