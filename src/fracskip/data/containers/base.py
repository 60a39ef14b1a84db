"""What the readers of all formats share: what they hand on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from fracskip.errors import DataError

MAX_PIECES = 100_000
"""The most segments, chunks, blocks or strips that a file may be made of."""

MAX_METADATA_BYTES = 2**20
"""The most of packed metadata that is unpacked."""


@dataclass(frozen=True)
class Container:
    """An encoded image without its metadata, and what its header says.

    Attributes:
        kind: Pillow's name of the format.
        content: The encoded image, reduced to what its first picture's pixels need.
        width: In pixels, before it is turned.
        height: In pixels, likewise.
        orientation: As in EXIF, 1 to 8; 1 is upright.
        bits: Bits a sample.
        inverted: Whether 16-bit samples are larger where it is darker.
        key: The colour that is transparent, in samples of `bits` bits; () if there is none.
        buffers: Bytes that the decoder holds besides the picture.
        scans: How often the decoder visits every pixel.
        shrinks: Whether the decoder can give half the size.
    """

    kind: str
    content: bytes
    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    inverted: bool = False
    key: tuple[int, ...] = ()
    buffers: int = 0
    scans: int = 1
    shrinks: bool = False

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def check_pieces(count: int, what: str) -> None:
    """Refuses a file that is made of too many pieces.

    Raises:
        DataError: if there are more than `MAX_PIECES`.
    """
    if count > MAX_PIECES:
        raise DataError(
            f"is made of more than {MAX_PIECES:,} {what}, the most that are read: save it anew"
        )
