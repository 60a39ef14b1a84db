"""The orientation of an image, out of its metadata: all that is read of them.

Damaged metadata say nothing; they are never a reason to refuse the pixels.
"""

from __future__ import annotations

import re
import struct

EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}  # of a tag's value, by its type
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation that EXIF (a TIFF structure) or, where that has none, XMP says.

    Returns:
        1 to 8; 1, which is upright, where neither says anything.
    """
    try:
        found = _in_exif(exif.removeprefix(EXIF_PREFIX))
    except (struct.error, KeyError):
        found = None
    if found is None:
        match = _XMP.search(xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _in_exif(exif: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == _ORIENTATION:
            value: int = struct.unpack_from(order + _FORMATS[kind], exif, entry + 8)[0]
            return value
    return None
