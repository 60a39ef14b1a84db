import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fracskip.data.sample as sample
from fracskip.data import load_sample
from fracskip.data.cifar import CIFAR10_CLASSES
from fracskip.errors import DataError


def test_the_bundled_images() -> None:
    bundled = load_sample()
    assert bundled.images.shape == (1000, 32, 32, 3)
    assert np.bincount(bundled.labels).tolist() == [100] * 10
    assert bundled.class_names == CIFAR10_CLASSES
    assert (bundled.name, bundled.split) == ("CIFAR-10 sample", "test")
    assert bundled.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the test set begins so


def test_the_assets_are_small_and_in_test_order() -> None:
    assets = Path(sample.__file__).parents[1] / "assets"
    assert (assets / sample.SHEET).stat().st_size < 3e6
    indices = json.loads((assets / sample.NOTES).read_text())["test_indices"]
    assert indices == sorted(set(indices))
    assert len(indices) == 1000


def test_sheets_are_undone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    sheet = sample.to_sheet(images)
    assert sheet.shape == (64, 1280, 3)
    np.testing.assert_array_equal(sheet[32:64, 32:64], images[41])
    np.testing.assert_array_equal(sample.from_sheet(sheet), images)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the installed assets that a test may spoil."""
    copy = tmp_path / "package" / "assets"
    copy.mkdir(parents=True)
    for name in (sample.SHEET, sample.NOTES):
        original = Path(sample.__file__).parents[1] / "assets" / name
        (copy / name).write_bytes(original.read_bytes())
    monkeypatch.setattr(sample, "files", lambda _: copy.parent)
    return copy


def test_another_image_is_detected(assets: Path) -> None:
    pixels = np.array(Image.open(assets / sample.SHEET))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(assets / sample.SHEET)
    with pytest.raises(DataError, match=r"is damaged \(its SHA-256 differs\): reinstall fracskip"):
        load_sample()


@pytest.mark.parametrize("name", [sample.SHEET, sample.NOTES])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_missing_or_broken_assets(name: str, content: bytes | None, assets: Path) -> None:
    (assets / name).unlink() if content is None else (assets / name).write_bytes(content)
    with pytest.raises(
        DataError, match=r"the bundled sample cannot be read .*: reinstall"
    ) as error:
        load_sample()
    assert "\n" not in str(error.value)
