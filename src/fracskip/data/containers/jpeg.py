"""JPEG: the segments that pixels need. ITU-T T.81; EXIF and XMP lie in segments of their own."""

from __future__ import annotations

import re
import struct

from fracskip.data.containers.base import Container, check_pieces
from fracskip.data.containers.exif import EXIF_PREFIX, orientation

_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
# Neither a stuffed zero, nor padding, nor what stands inside a scan.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_EOI, _SOS, _DHT, _JPG, _DAC = 0xD9, 0xDA, 0xC4, 0xC8, 0xCC
_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_PROGRESSIVE, _LOSSLESS = (0xC2, 0xC6, 0xCA, 0xCE), (0xC3, 0xC7, 0xCB, 0xCF)


def read(content: bytes) -> Container:
    """Drops everything but JFIF's and Adobe's segments (how colours are coded), tables and scans.

    Raises:
        DataError: if it has too many segments.
        struct.error: if it has no frame.
    """
    kept, exif, xmp = [content[:2]], b"", b""
    frame, frame_kind, scans, partial, count = b"", 0, 0, False, 0
    found = _MARKER.search(content, 2)
    while found is not None and content[found.start() + 1] != _EOI:
        start, marker = found.start(), content[found.start() + 1]
        count += 1
        check_pieces(count, "segments")
        length = int.from_bytes(content[start + 2 : start + 4], "big")
        end, body = start + 2 + length, content[start + 4 : start + 2 + length]
        found = _MARKER.search(content, end)
        if marker == _APP1 and body.startswith(EXIF_PREFIX):
            exif = exif or body
        elif marker == _APP1 and body.startswith(_XMP_PREFIX):
            xmp = xmp or body
        elif marker == _SOS:
            scans += 1
            partial |= bool(frame) and body[:1] != frame[5:6]
            # The scan's data goes up to the next marker.
            end = len(content) if found is None else found.start()
        elif 0xC0 <= marker <= 0xCF and marker not in (_DHT, _JPG, _DAC):
            frame, frame_kind = body, marker
        is_metadata = _APP0 < marker <= _APP15 and marker != _APP14
        if not is_metadata and marker != _COM:
            kept.append(content[start:end])
    _, height, width, components = struct.unpack_from(">BHHB", frame)
    whole = frame_kind in _PROGRESSIVE or partial  # kept as coefficients until the last scan
    return Container(
        "JPEG",
        b"".join([*kept, b"\xff\xd9"] if found is not None else kept),
        width,
        height,
        orientation=orientation(exif, xmp),
        buffers=_coefficients(frame, width, height, components) if whole else 0,
        scans=scans,
        shrinks=frame_kind not in _LOSSLESS,
    )


def _coefficients(frame: bytes, width: int, height: int, components: int) -> int:
    """Bytes of all coefficients, two each."""
    factors = [(frame[at] >> 4, frame[at] & 15) for at in range(7, 7 + 3 * components, 3)]
    whole = max(h for h, _ in factors) * max(v for _, v in factors)  # of a pixel's samples
    return 2 * width * height * sum(h * v for h, v in factors) // whole
