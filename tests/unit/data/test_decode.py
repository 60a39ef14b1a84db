import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracskip.config import ImageConfig
from fracskip.data import decode
from fracskip.data.decode import decode_image
from fracskip.errors import DataError

SIDE = 8
RGB = ImageConfig(size=(SIDE, SIDE))
GREY = ImageConfig(size=(SIDE, SIDE), channels=1, mean=(0.5,), std=(0.5,))


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int = SIDE, width: int = SIDE, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def solid(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def test_an_image_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    pixels = noise()
    content = encode(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for source in (content, path, io.BytesIO(content)):
        decoded = decode_image(source, RGB)
        assert decoded.dtype == np.uint8
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, pixels)


def test_grey_has_one_channel_or_is_repeated() -> None:
    pixels = noise(channels=1)
    content = encode(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_image(content, GREY)[..., 0], pixels)
    np.testing.assert_array_equal(decode_image(content, RGB), pixels[..., None].repeat(3, 2))


def test_rgb_becomes_grey_by_luma() -> None:
    decoded = decode_image(encode(solid("RGB", (255, 0, 0))), GREY)
    assert decoded.shape == (SIDE, SIDE, 1)
    assert np.unique(decoded).tolist() == [76]  # 0.299 * 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([0, 128, 129, 257, 1000, 32768, 65406, 65535], dtype=np.uint16)
    content = encode(Image.fromarray(np.tile(values, (SIDE, 1))))
    assert Image.open(io.BytesIO(content)).mode == "I;16"
    expected = [round(value / 257) for value in values.tolist()]
    assert (
        decode_image(content, GREY)[0, :, 0].tolist() == expected == [0, 0, 1, 1, 4, 128, 254, 255]
    )
    assert decode_image(content, RGB)[0, :, 1].tolist() == expected


def test_sixteen_bits_in_a_big_endian_tiff() -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(">u2").reshape(SIDE, SIDE)
    decoded = decode_image(
        encode(Image.frombytes("I;16B", values.shape, values.tobytes()), "TIFF"), GREY
    )
    np.testing.assert_array_equal(decoded[..., 0], np.round(values.astype(float) / 257))


@pytest.mark.parametrize(
    ("picture", "kind", "words"),
    [
        (solid("F", 0.5), "TIFF", "floating-point pixels"),
        (solid("I", 70_000), "TIFF", "32-bit pixels"),
    ],
)
def test_pixels_without_an_agreed_range_are_refused(
    picture: Image.Image, kind: str, words: str
) -> None:
    with pytest.raises(DataError, match=f"{words}.*8 or 16 bits"):
        decode_image(encode(picture, kind), RGB)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (solid("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (solid("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (solid("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (solid("LA", (0, 0)), (255, 255, 255)),
        (solid("LA", (40, 255)), (40, 40, 40)),
    ],
)
def test_alpha_is_composited_over_white(picture: Image.Image, expected: tuple[int, ...]) -> None:
    decoded = decode_image(encode(picture), RGB)
    np.testing.assert_array_equal(decoded, np.broadcast_to(expected, decoded.shape))


def test_palettes_with_and_without_transparency() -> None:
    picture = solid("P", 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    assert decode_image(encode(picture), RGB)[0, 0].tolist() == [200, 100, 50]
    assert decode_image(encode(picture, transparency=1), RGB)[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encode(picture, transparency=b"\xff\x00"), RGB)[0, 0].tolist() == [255] * 3


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    keyed = encode(solid("RGB", (1, 2, 3)), transparency=(1, 2, 3))
    assert decode_image(keyed, RGB)[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encode(solid("L", 9), transparency=9), GREY)[0, 0].tolist() == [255]


def test_one_bit_and_cmyk() -> None:
    assert np.unique(decode_image(encode(solid("1", 1)), GREY)).tolist() == [255]
    assert np.unique(decode_image(encode(solid("1", 0)), RGB)).tolist() == [0]
    cyan = decode_image(encode(solid("CMYK", (255, 0, 0, 0)), "JPEG", quality=95), RGB)
    assert np.abs(cyan.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = noise()
    undo = {  # how a camera that stores `orientation` laid the pixels out
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(np.ascontiguousarray(undo)), exif=exif)
    np.testing.assert_array_equal(decode_image(content, RGB), upright)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [solid("RGB", (v, v, v)) for v in (30, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.unique(decode_image(content, RGB)).tolist() == [30]


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16)])
def test_the_centre_of_the_longer_side_is_kept(height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    middle = (slice(None), slice(16, 32)) if width > height else (slice(16, 32), slice(None))
    pixels[middle] = 255
    decoded = decode_image(encode(Image.fromarray(pixels)), RGB)
    assert decoded.shape == (SIDE, SIDE, 3)
    assert decoded[2:-2, 2:-2].min() == 255


def test_a_target_need_not_be_square() -> None:
    target = ImageConfig(size=(8, 24))
    assert decode_image(encode(Image.fromarray(noise(100, 60))), target).shape == (8, 24, 3)
    assert decode_image(encode(Image.fromarray(noise(1, 4000))), target).shape == (8, 24, 3)
    assert decode_image(encode(Image.fromarray(noise(1, 1))), target).shape == (8, 24, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated(kind: str, share: float) -> None:
    content = encode(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(DataError, match=r"image of \d+ bytes is (damaged|not an image)"):
        decode_image(content[: int(share * len(content))], RGB)


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    for source in (b"", path, io.BytesIO()):
        with pytest.raises(DataError, match="is empty: use one of JPEG"):
            decode_image(source, RGB)


def test_not_an_image_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("these are no pixels")
    with pytest.raises(DataError, match=r"notes\.png is not an image that can be read: use one of"):
        decode_image(path, RGB)
    with path.open("rb") as stream, pytest.raises(DataError, match=r"notes\.png"):
        decode_image(stream, RGB)


def test_formats_that_run_other_programs_are_not_read() -> None:
    with pytest.raises(DataError, match="not an image that can be read"):
        decode_image(encode(solid("RGB", 0), "EPS"), RGB)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        decode_image(tmp_path / "gone.png", RGB)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(tmp_path, RGB)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and then ends."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize("side", [9_460, 12_000, 15_000, 60_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("guard", ["kept", "switched off"])
def test_decompression_bombs(
    side: int, action: str, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if guard == "switched off":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(DataError, match="larger than 89,478,485 pixels"):
            decode_image(png_header(side, side), RGB)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_pillows_own() -> None:
    assert decode.MAX_PIXELS == Image.MAX_IMAGE_PIXELS
