from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracskip.config import ImageConfig
from fracskip.data import imageset, load_folder
from fracskip.errors import DataError

IMAGE = ImageConfig(size=(8, 12))
GREY = ImageConfig(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


def draw(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    draw(root / "train/dog/1.png", 10)
    draw(root / "train/cat/b.bmp", 30, size=(100, 50))
    draw(root / "train/cat/a.PNG", 20, mode="L", size=(5, 5))
    draw(root / "train/cat/c.webp", 255, mode="RGBA")
    draw(root / "val/dog/2.jpeg", 40)
    draw(root / "val/dog/3.jpg", 50)
    return root


def test_images_of_any_kind_by_class_and_name(folder: Path) -> None:
    train = load_folder(folder, "train", IMAGE)
    assert train.images.shape == (4, 8, 12, 3)
    assert train.images[:, 4, 6, 0].tolist() == [20, 30, 255, 10]
    assert train.labels.tolist() == [0, 0, 0, 1]
    assert train.class_names == ("cat", "dog")
    assert (train.name, train.split, train.skipped) == ("pets", "train", ())


def test_test_labels_follow_the_training_classes(folder: Path) -> None:
    test = load_folder(folder, "test", GREY)
    assert test.images.shape == (2, 8, 8, 1)
    assert test.labels.tolist() == [1, 1]
    assert test.class_names == ("cat", "dog")


def test_a_test_folder_comes_before_val(folder: Path) -> None:
    draw(folder / "test/cat/1.png", 99)
    assert load_folder(folder, "test", IMAGE).labels.tolist() == [0]


def test_other_and_hidden_files_are_ignored(folder: Path) -> None:
    for name in ("train/cat/notes.txt", "train/cat/._a.png", "train/README", "train/.cache/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    (folder / "train/cat/d.png").mkdir()
    assert len(load_folder(folder, "train", IMAGE)) == 4


def test_one_class(tmp_path: Path) -> None:
    draw(tmp_path / "train/only/1.png")
    assert load_folder(tmp_path, "train", IMAGE).class_names == ("only",)


def test_labels_that_do_not_match(folder: Path) -> None:
    draw(folder / "val/wolf/1.png")
    draw(folder / "val/fox/1.png")
    with pytest.raises(DataError, match=r"labels of .*val do not match .*extra classes fox, wolf;"):
        load_folder(folder, "test", IMAGE)


def test_missing_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone cannot be read .*it needs train/CLASS/ and val/"):
        load_folder(tmp_path / "gone", "train", IMAGE)
    (folder / "val").rename(folder / "validation")
    with pytest.raises(DataError, match=r"cannot be read at .*val .*No such file"):
        load_folder(folder, "test", IMAGE)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="holds no class folders"):
        load_folder(tmp_path, "train", IMAGE)
    (tmp_path / "train/cat").mkdir()
    with pytest.raises(DataError, match=r"holds no images: put \.jpg \.jpeg \.png"):
        load_folder(tmp_path, "train", IMAGE)
    draw(tmp_path / "train/dog/1.png")
    with pytest.raises(DataError, match=r"class folders of .* without images: cat; add images"):
        load_folder(tmp_path, "train", IMAGE)


def spoil(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"train/dog/bad{number}.jpg").write_bytes(b"\xff\xd8\xff" * number)


def test_corrupt_images_are_named(folder: Path) -> None:
    spoil(folder, 2)
    with pytest.raises(DataError, match=r"2 of 6 images in .*bad0\.jpg is empty.*bad1\.jpg") as one:
        load_folder(folder, "train", IMAGE)
    assert "on_corrupt='skip'" in str(one.value)
    spoil(folder, 8)
    with pytest.raises(DataError, match=r"8 of 12 images .*bad4\.jpg.*; and 3 more") as many:
        load_folder(folder, "train", IMAGE)
    assert "bad5" not in str(many.value)


def test_corrupt_images_can_be_skipped(folder: Path) -> None:
    spoil(folder, 2)
    train = load_folder(folder, "train", IMAGE, on_corrupt="skip")
    assert train.labels.tolist() == [0, 0, 0, 1]
    assert train.images[:, 4, 6, 0].tolist() == [20, 30, 255, 10]
    assert train.skipped == ("train/dog/bad0.jpg", "train/dog/bad1.jpg")


def test_nothing_but_corrupt_images_is_an_error(tmp_path: Path) -> None:
    draw(tmp_path / "train/dog/1.png")
    (tmp_path / "train/dog/1.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_folder(tmp_path, "train", IMAGE, on_corrupt="skip")


def test_too_many_images_are_refused_before_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imageset, "MAX_BYTES", 4 * 8 * 12 * 3 - 1)
    with pytest.raises(DataError, match="pets would take"):
        load_folder(folder, "train", IMAGE)


def test_many_images_keep_their_places(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(64)
    for number, value in enumerate(values.tolist()):
        draw(tmp_path / f"train/only/{number:03}.png", value)
    np.testing.assert_array_equal(load_folder(tmp_path, "train", IMAGE).images[:, 0, 0, 0], values)
