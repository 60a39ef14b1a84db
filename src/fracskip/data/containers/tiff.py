"""TIFF and BigTIFF: the tags that pixels need, of the first image."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fracskip.data.containers.base import Container, check_pieces
from fracskip.data.containers.exif import orientation
from fracskip.errors import DataError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _XMP = 273, 274, 277, 278, 700
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _SAMPLE_FORMAT = 322, 323, 324, 339
# These, fill order, planes, fax options, predictor, colour map, byte counts, extra samples, the
# tables of JPEG, and how YCbCr is coded.
_KEPT = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, _SAMPLES, _ROWS, 279}
_KEPT |= {284, 292, 293, 317, 320, _TILE_WIDTH, _TILE_HEIGHT, _TILES, 325, 338, _SAMPLE_FORMAT, 347}
_KEPT |= {*range(512, 522), *range(529, 533)}
_MIN_IS_WHITE, _MIN_IS_BLACK = 0, 1
_JPEGS = (6, 7)
_UNSIGNED, _SIGNED = 1, 2
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


@dataclass(frozen=True)
class _Layout:
    """How a directory is written: classic or big, in which byte order."""

    order: str
    big: bool

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count, and the value or where it is."""
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def offset(self) -> struct.Struct:
        """Of a position in the file."""
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def count(self) -> struct.Struct:
        """Of the number of entries."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))


@dataclass(frozen=True)
class _Field:
    """An entry of a directory, as it is written."""

    kind: int
    count: int
    value: bytes


class _Directory:
    """The first directory of a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        order = "<" if content[:2] == b"II" else ">"
        self.layout = _Layout(order, 43 in (content[2], content[3]))
        offset, count, entry = self.layout.offset, self.layout.count, self.layout.entry
        (at,) = offset.unpack_from(content, 8 if self.layout.big else 4)
        (entries,) = count.unpack_from(content, at)
        check_pieces(entries, "tags")
        self.fields: dict[int, _Field] = {}
        for index in range(entries):
            tag, *field = entry.unpack_from(content, at + count.size + index * entry.size)
            self.fields.setdefault(tag, _Field(*field))

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag's values, or none."""
        field = self.fields.get(tag)
        if field is None:
            return b""
        size = field.count * _SIZES.get(field.kind, 0)
        if size <= len(field.value):
            return field.value[:size]
        (at,) = self.layout.offset.unpack(field.value)
        return self.content[at : at + size]

    def first(self, tag: int, default: int) -> int:
        """The first of a tag's values."""
        raw, code = self.raw(tag), _INTEGERS.get(self.fields[tag].kind) if self.raw(tag) else None
        if code is None:
            return default
        value: int = struct.unpack_from(self.layout.order + code, raw)[0]
        return value

    def rebuilt(self, changed: Mapping[int, int]) -> bytes:
        """The file with a directory of `_KEPT` alone, at its end, and no second one.

        Args:
            changed: 16-bit values that take the place of what a tag has.
        """
        layout = self.layout
        entries = [
            layout.entry.pack(tag, field.kind, field.count, field.value)
            if tag not in changed
            else layout.entry.pack(tag, 3, 1, struct.pack(layout.order + "H", changed[tag]))
            for tag, field in self.fields.items()
            if tag in _KEPT
        ]
        padding = bytes(len(self.content) % 2)
        start = layout.offset.pack(len(self.content) + len(padding))
        at = 8 if layout.big else 4
        parts = [self.content[:at], start, self.content[at + len(start) :], padding]
        parts += [layout.count.pack(len(entries)), *entries, layout.offset.pack(0)]
        return b"".join(parts)


def read(content: bytes) -> Container:
    """Drops all tags that pixels don't need, and all images but the first.

    Raises:
        DataError: if its samples have no agreed range, or it has too many strips or tags.
        struct.error: if it is cut short.
    """
    found = _Directory(content)
    width, height = found.first(_WIDTH, 0), found.first(_HEIGHT, 0)
    bits, samples = found.first(_BITS, 1), found.first(_SAMPLES, 1)
    _check_samples(bits, found.first(_SAMPLE_FORMAT, _UNSIGNED))
    kept = sum(
        field.count * _SIZES.get(field.kind, 0)
        for tag, field in found.fields.items()
        if tag in _KEPT
    )
    if kept > len(content):
        raise DataError(
            "has tags that are larger than the file: it is damaged, replace or remove it"
        )
    strips = max(
        (found.fields[tag].count for tag in (_STRIPS, _TILES) if tag in found.fields), default=0
    )
    check_pieces(strips, "strips")
    strip = _check_strips(found, width, height)
    scans = 1
    if found.first(_COMPRESSION, 1) in _JPEGS:  # one a strip is what is usual
        scans = max(1, content.count(b"\xff\xda") - strips + 1)
    inverted = bits > 8 and found.first(_PHOTOMETRIC, _MIN_IS_WHITE) == _MIN_IS_WHITE
    return Container(
        "TIFF",
        found.rebuilt({_PHOTOMETRIC: _MIN_IS_BLACK} if inverted else {}),
        width,
        height,
        orientation=_orientation(found),
        bits=bits,
        inverted=inverted,
        scans=scans,
        buffers=strip * max(4, samples * bits // 8),
    )


def _check_samples(bits: int, sample_format: int) -> None:
    if sample_format == _SIGNED:
        raise DataError(
            f"has signed {bits}-bit pixels, which have no agreed range: save it with 8 or 16 bits, "
            "unsigned"
        )
    if bits > 16 and sample_format == _UNSIGNED:
        raise DataError(
            f"has {bits}-bit pixels, which have no agreed range: save it with 8 or 16 bits"
        )


def _check_strips(found: _Directory, width: int, height: int) -> int:
    """Pixels of a strip or tile, which the decoder holds whole.

    Raises:
        DataError: if they are much more than the image has.
    """
    if _TILES not in found.fields:
        return width * min(height, found.first(_ROWS, height))
    across, down = found.first(_TILE_WIDTH, 0), found.first(_TILE_HEIGHT, 0)
    if across < 1 or down < 1:
        raise DataError("has tiles without a size: it is damaged, replace or remove it")
    tiles = math.ceil(width / across) * math.ceil(height / down)
    # A tile of an image that is smaller reaches beyond it; the usual ones are 64 to 1,024 wide.
    if tiles * across * down > 2 * max(width * height, 2**22):
        raise DataError(
            f"has tiles of {across} x {down} pixels, far more than its {width} x {height}: save it "
            "anew"
        )
    return across * down


def _orientation(found: _Directory) -> int:
    value = found.first(_ORIENTATION, 0)
    return value if 1 <= value <= 8 else orientation(b"", found.raw(_XMP))
