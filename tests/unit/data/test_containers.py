"""Hostile images: refused before they are decoded, or decoded in bounded memory and time."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracskip.config import ImageConfig
from fracskip.data import decode
from fracskip.data.containers import inspect
from fracskip.data.decode import decode_image, open_picture
from fracskip.data.quiet import quiet
from fracskip.errors import DataError
from support.image_builders import chunk, encode, exif, exif_bomb, png, segment, tiff

SIDE = 8
PIXELS = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
IMAGE = ImageConfig(size=(SIDE, SIDE))
JPEG, PNG = encode(PICTURE, "JPEG"), encode(PICTURE, "PNG")
WEBP = encode(PICTURE, "WEBP", lossless=True)
GIF = encode(PICTURE.quantize(16), "GIF")
PROGRESSIVE = encode(Image.new("L", (2000, 1000)), "JPEG", progressive=True)
HUGE = (9_400, 9_500)  # as many pixels as are decoded, if nothing else is copied


def webp_header(width: int, height: int) -> bytes:
    """46 bytes of a lossless WebP."""
    body = b"\x2f" + struct.pack("<I", width - 1 | (height - 1) << 14) + bytes(21)
    return b"RIFF" + struct.pack("<I", 38) + b"WEBPVP8L" + struct.pack("<I", 26) + body


def bmp(width: int, height: int, compression: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 4, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + header + bytes(1024) + b"\0\1\0\1"


def jpeg_of(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    return PROGRESSIVE[:-2] + (count - 6) * PROGRESSIVE[last:-2] + PROGRESSIVE[-2:]


def with_gif_blocks(blocks: bytes) -> bytes:
    at = 13 + (3 << (GIF[10] & 7) + 1)
    return GIF[:at] + blocks + GIF[at:]


MANY = 100_001
TOO_MANY_PIXELS = "is larger than 89,478,485 pixels, the most that is decoded: scale it down"
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG of 4,290 megapixels": (lambda: jpeg_of(65_500, 65_500), TOO_MANY_PIXELS),
    "PNG of 3,600 megapixels": (lambda: png((60_000, 60_000), 8, 2, b""), TOO_MANY_PIXELS),
    "WebP of 268 megapixels": (lambda: webp_header(16_383, 16_383), TOO_MANY_PIXELS),
    "GIF of 4,295 megapixels": (
        lambda: GIF[:6] + struct.pack("<HH", 65_535, 65_535) + GIF[10:],
        TOO_MANY_PIXELS,
    ),
    "BMP of 10^10 pixels": (lambda: bmp(100_000, -100_000, 0), TOO_MANY_PIXELS),
    "TIFF of 10^10 pixels": (lambda: tiff((100_000, 100_000), 8, bytes(8)), TOO_MANY_PIXELS),
    "PGM of 10^10 pixels": (lambda: b"P5 100000 100000 255\n", TOO_MANY_PIXELS),
    "WebP in 46 bytes": (lambda: webp_header(*HUGE), "which take 1363 MiB to decode, more than"),
    "PNG with alpha": (
        lambda: png(HUGE, 8, 6, b""),
        "has 9400 x 9500 pixels, which take 681 MiB to decode, more than the 400 MiB",
    ),
    "PNG that is turned": (
        lambda: png(HUGE, 8, 2, b"", before=chunk(b"eXIf", exif(6))),
        "which take 681 MiB to decode",
    ),
    "TIFF of one strip": (
        lambda: tiff(HUGE, 16, bytes(8), more=[(259, 8)]),
        "which take 596 MiB to decode",
    ),
    "JPEG of many scans": (
        lambda: scans(501),
        "has 501 scans of 2,000,000 pixels, 500 are decoded at most: save it anew",
    ),
    "JPEG of many segments": (
        lambda: JPEG[:2] + segment(0xE5, b"") * MANY + JPEG[2:],
        "is made of more than 100,000 segments, the most that are read: save it anew",
    ),
    "PNG of many chunks": (lambda: PNG[:33] + chunk(b"teXt", b"") * MANY + PNG[33:], "0 chunks"),
    "PNG of many empty IDATs": (lambda: PNG[:33] + chunk(b"IDAT", b"") * MANY, "0 chunks"),
    "GIF of many blocks": (lambda: with_gif_blocks(b"!\xfe\1x\0" * MANY), "000 blocks"),
    "WebP of many chunks": (
        lambda: WEBP[:12] + b"VP8X" + struct.pack("<I", 10) + bytes(10) + b"JUNK\0\0\0\0" * MANY,
        "0 chunks",
    ),
    "TIFF of many strips": (lambda: tiff((8, 8), 8, bytes(10**6), strips=MANY), "000 strips"),
    "TIFF whose tags are larger than the file": (
        lambda: tiff((8, 8), 8, bytes(64), strips=99_999),
        "has tags that are larger than the file: it is damaged",
    ),
    "TIFF of a huge tile": (
        lambda: tiff((8, 8), 8, bytes(64), more=[(322, 32_000), (323, 32_000), (324, 8)]),
        "has tiles of 32000 x 32000 pixels, far more than its 8 x 8: save it anew",
    ),
    "BMP that is run-length coded": (
        lambda: bmp(2049, 2048, 1),
        "is a run-length coded BMP of 2049 x 2048 pixels in 1,082 bytes, read up to 4,194,304",
    ),
    "Netpbm with an endless comment": (
        lambda: b"P6 #" + b"x" * 10**6,
        "is a Netpbm file, of which",
    ),
    "two sizes": (
        lambda: encode(PICTURE, "BMP")[:22] + b"\0\0\0\0" + encode(PICTURE, "BMP")[26:],
        "image of 246 bytes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_the_header(case: str) -> None:
    build, words = REFUSED[case]
    with pytest.raises(DataError) as caught:
        decode_image(build(), IMAGE)
    message = str(caught.value)
    assert words in message
    assert message.startswith("image of ")
    assert len(message) < 400


@pytest.mark.parametrize("source", ["path", "stream", "bytes"])
def test_large_files_are_refused_by_their_size(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**20 + 1)
    given = {"path": path, "stream": io.BytesIO(path.read_bytes()), "bytes": path.read_bytes()}
    with pytest.raises(DataError, match=r"is larger than 1 MiB, the most that is read: scale it"):
        decode_image(given[source], IMAGE)


def test_the_size_of_a_file_is_enough_to_refuse_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match="is larger than 256 MiB"):
        decode_image(path, IMAGE)


# -- metadata -------------------------------------------------------------------------------------


def with_chunk(kind: bytes, body: bytes) -> bytes:
    return PNG[:33] + chunk(kind, body) + PNG[33:]


def with_segment(body: bytes, marker: int = 0xE1) -> bytes:
    return JPEG[:2] + segment(marker, body) + JPEG[2:]


BOMB = zlib.compress(bytes(50_000_000))
HARMLESS: dict[str, Callable[[], bytes]] = {
    "PNG: EXIF of 600 GB": lambda: with_chunk(b"eXIf", exif_bomb(60_000, 10_000_000)),
    "PNG: text": lambda: with_chunk(b"zTXt", b"a\0\0" + BOMB),
    "PNG: texts": lambda: PNG[:33] + chunk(b"zTXt", b"a\0\0" + BOMB) * 9 + PNG[33:],
    "PNG: raw EXIF": lambda: with_chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "PNG: no raw EXIF": lambda: with_chunk(b"zTXt", b"Raw profile type exif\0\0no zlib"),
    "PNG: XMP": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "PNG: profile": lambda: with_chunk(b"iCCP", b"a\0\0" + BOMB),
    "PNG: an animation that is none": lambda: with_chunk(b"acTL", bytes(3)),
    "PNG: a checksum": lambda: PNG[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + PNG[33:],
    "JPEG: EXIF of 100 MB": lambda: with_segment(b"Exif\0\0" + exif_bomb(3000, 29_000)),
    "JPEG: EXIF is cut": lambda: with_segment(b"Exif\0\0" + exif(6)[:12]),
    "JPEG: EXIF of an unknown type": lambda: with_segment(
        b"Exif\0\0" + exif(6).replace(b"\x12\1\3\0", b"\x12\1\xff\0")
    ),
    "JPEG: EXIF that is none": lambda: with_segment(b"Exif\0\0nothing"),
    "JPEG: 9 as orientation": lambda: with_segment(b"Exif\0\0" + exif(9)),
    "JPEG: further pictures": lambda: with_segment(b"MPF\0II*\0" + bytes(8), 0xE2),
    "JPEG: comments": lambda: JPEG[:2] + segment(0xFE, bytes(60_000)) * 99 + JPEG[2:],
    "WebP: EXIF of 600 GB": lambda: encode(
        PICTURE, "WEBP", lossless=True, exif=exif_bomb(60_000, 1_000_000)
    ),
    "GIF: a long comment": lambda: with_gif_blocks(
        b"!\xfe" + (b"\xff" + bytes(255)) * 90_000 + b"\0"
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_metadata_change_nothing(case: str) -> None:
    plain = {"PNG": PNG, "JPEG": JPEG, "WebP": WEBP, "GIF": GIF}[case.partition(":")[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(open_picture(HARMLESS[case]()))
    np.testing.assert_array_equal(found, np.asarray(open_picture(plain)))


def test_damaged_exif_never_refuses_good_pixels() -> None:
    """Bytes of the EXIF are changed at random; all that may change is how the image is turned."""
    rng = np.random.default_rng(0)
    camera = Image.Exif()
    camera[0x010F], camera[0x0112], camera[0x9003] = "maker", 1, "2020:01:01 00:00:00"
    whole = encode(PICTURE, "JPEG", exif=camera)
    size = len(camera.tobytes())
    at = whole.index(b"Exif\0\0") + 6
    shapes = [np.asarray(open_picture(JPEG))[::a, ::b].tolist() for a in (1, -1) for b in (1, -1)]
    shapes += [np.swapaxes(shape, 0, 1).tolist() for shape in shapes]
    for _ in range(300):
        content = bytearray(whole)
        content[at + int(rng.integers(size - 6))] = int(rng.integers(256))
        assert np.asarray(open_picture(bytes(content))).tolist() in shapes


@pytest.mark.parametrize(
    "content",
    [
        with_chunk(b"eXIf", exif(6)),
        with_chunk(b"eXIf", exif(6, ">")),
        with_chunk(b"eXIf", exif(6, ">", 4)),
        with_chunk(b"eXIf", exif(6, "<", 1)),
        with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6' "
                   b'tiff:Orientation="6"/>'),
        with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 26\n" + exif(6).hex().encode()),
        encode(PICTURE, "TIFF", exif=exif(6)),
        encode(PICTURE, "WEBP", lossless=True, exif=exif(6)),
        encode(PICTURE, "WEBP", lossless=True, xmp=b'<x tiff:Orientation="6"/>'),
        encode(PICTURE, "TIFF", tiffinfo={274: 6}, big_tiff=True),
    ],
)  # fmt: skip
def test_orientations_are_found_wherever_they_are(content: bytes) -> None:
    found = np.asarray(open_picture(content))
    np.testing.assert_array_equal(found, np.rot90(PIXELS, -1))


# -- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["error", "always"])
def test_warnings_of_pillow_reach_nobody(
    action: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)  # so that Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        before = list(warnings.filters)
        np.testing.assert_array_equal(decode_image(PNG, IMAGE), PIXELS)
        assert warnings.filters == before
    assert capsys.readouterr().err == ""


def test_filters_come_back_when_the_last_is_done() -> None:
    before = list(warnings.filters)
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.filters != before
    second.__exit__(None, None, None)
    assert warnings.filters == before


# -- memory ---------------------------------------------------------------------------------------

PEAKS = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from fracskip.data.containers import inspect
from fracskip.data.decode import open_picture
from fracskip.data.pixels import memory, open_container

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

open_picture(Path(sys.argv[1]))
base = peak()
for name in sys.argv[2:]:
    content = Path(name).read_bytes()
    found = inspect(content)
    expected = memory(open_container(found), found)
    open_picture(content)
    print(expected, peak() - base)
"""
SQUARE = (3000, 3000)


def large() -> list[bytes]:
    """Images whose copies take more and more memory."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    smooth = noise.resize(SQUARE)
    alpha, rgb16 = bytes(1 + 4 * SQUARE[0]), bytes(1 + 6 * SQUARE[0])
    return [
        png(SQUARE, 8, 2, bytes(1 + 3 * SQUARE[0]), tail=SQUARE[1]),
        encode(smooth, "JPEG", exif=b"Exif\0\0" + exif(6)),
        png(SQUARE, 8, 6, alpha, tail=SQUARE[1]),
        encode(smooth, "JPEG", progressive=True, subsampling=0),
        png(SQUARE, 16, 2, rgb16, tail=SQUARE[1], before=chunk(b"tRNS", bytes(6))),
        encode(smooth, "WEBP", quality=50, method=0),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux counts it")
def test_decoding_takes_no_more_memory_than_is_reckoned_with(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}" for index in range(7)]
    for file, content in zip(files, [PNG, *large()], strict=True):
        file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *files], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    rows = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [row[0] // (SQUARE[0] * SQUARE[1]) for row in rows] == [4, 8, 8, 10, 12, 16]
    for expected, taken in rows:
        assert taken < expected + 24 * 2**20


def test_a_jpeg_that_takes_too_much_is_decoded_at_half_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smooth = PICTURE.resize((64, 64), Image.Resampling.BICUBIC)
    content = encode(smooth, "JPEG", quality=95)
    whole = decode_image(content, IMAGE).astype(int)
    monkeypatch.setattr(decode, "MAX_MEMORY", 4 * 64 * 64 - 1)
    assert open_picture(content).size == (32, 32)
    assert np.abs(decode_image(content, IMAGE) - whole).max() <= 4
    with pytest.raises(DataError, match="has 64 x 64 pixels, which take 0 MiB"):
        open_picture(encode(smooth, "PNG"))


def test_what_is_handed_to_the_decoder_holds_pixels_alone() -> None:
    for content in (
        with_segment(b"Exif\0\0secret"),
        with_chunk(b"tEXt", b"a\0secret"),
        with_gif_blocks(b"!\xfe\6secret\0"),
    ):
        found = inspect(content)
        assert found is not None
        assert b"secret" not in found.content
        assert (found.width, found.height) == (SIDE, SIDE)
