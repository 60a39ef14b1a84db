from pathlib import Path

import numpy as np
import pytest
from data_builders import raw_set
from PIL import Image

from fracskip.config import ImageConfig
from fracskip.data import imageset, load_sample, load_split, store
from fracskip.errors import DataError

RGB8 = ImageConfig(size=(8, 8))
GREY8 = ImageConfig(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_stored_sets(name: str) -> None:
    raw = raw_set(size=8)
    store.save(name, raw)
    for split in ("train", "test"):
        loaded = load_split(name, split, RGB8)
        np.testing.assert_array_equal(loaded.images, raw.arrays[f"{split}_images"])
        assert loaded.split == split


def test_grey_becomes_rgb_and_back() -> None:
    raw = raw_set(size=8, channels=1)
    store.save("fashion-mnist", raw)
    rgb = load_split("fashion-mnist", "test", RGB8)
    np.testing.assert_array_equal(rgb.images, raw.arrays["test_images"].repeat(3, 3))
    store.save("cifar10", raw_set(size=8))
    assert load_split("cifar10", "test", GREY8).images.shape == (4, 8, 8, 1)


def test_another_size_is_resampled_bilinearly() -> None:
    raw = raw_set(size=16)
    store.save("cifar10", raw)
    fitted = load_split("cifar10", "train", RGB8)
    assert fitted.images.shape == (8, 8, 8, 3)
    picture = Image.fromarray(raw.arrays["train_images"][5])
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fitted.images[5], expected)
    np.testing.assert_array_equal(fitted.labels, raw.arrays["train_labels"])


def test_the_sample() -> None:
    image = ImageConfig()
    np.testing.assert_array_equal(load_split("sample", "test", image).images, load_sample().images)
    with pytest.raises(DataError, match="sample has test images alone"):
        load_split("sample", "train", image)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "cat" / "1.png")
    assert len(load_split(f"folder:{tmp_path}", "train", RGB8)) == 1


@pytest.mark.parametrize("name", ["imagenet", "", "CIFAR10", "../cifar10", "folder"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        DataError, match="is unknown: use one of cifar10, cifar100, fashion-mnist, sample, or fold"
    ):
        load_split(name, "train", RGB8)


def test_unknown_splits() -> None:
    with pytest.raises(DataError, match="split 'val' is unknown: use 'train' or 'test'"):
        load_split("cifar10", "val", RGB8)  # type: ignore[arg-type]


def test_a_set_that_was_never_acquired() -> None:
    with pytest.raises(DataError, match="run `fracskip data cifar100`"):
        load_split("cifar100", "train", RGB8)


def test_a_size_that_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageset, "MAX_BYTES", 10**8)
    with pytest.raises(DataError, match="CIFAR-10 sample would take"):
        load_split("sample", "test", ImageConfig(size=(224, 224)))


def test_a_stored_set_is_resized_and_cut() -> None:
    raw = raw_set(size=16)
    store.save("cifar10", raw)
    image = ImageConfig(size=(8, 8), resize=16)
    images = load_split("cifar10", "train", image).images
    np.testing.assert_array_equal(images, raw.arrays["train_images"][:, 4:12, 4:12])
    same = load_split("cifar10", "train", ImageConfig(size=(16, 16), resize=16)).images
    np.testing.assert_array_equal(same, raw.arrays["train_images"])
