import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from fracskip.config import ImageConfig
from fracskip.data import SUFFIXES, central, class_counts, imageset, load_folder
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


def test_other_files_are_left_out_and_said_hidden_ones_are_not(folder: Path) -> None:
    for name in (
        "train/cat/notes.txt",
        "train/cat/2024/more.TXT",
        "train/dog/photo.avif",
        "train/dog/LICENSE",
        "train/cat/._a.png",
        "train/.cache/x.png",
        "train/README",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    draw(folder / "train/beside.png")
    (folder / "train/cat/d.png").mkdir()
    train = load_folder(folder, "train", IMAGE)
    assert len(train) == 4
    assert train.notes == (
        f"files left out of {folder}/train because their names are not those of images (4): .txt "
        "(2), LICENSE (1), .avif (1); read are .jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif "
        ".tiff .ppm .pgm .pbm .pnm",
        f"images left out of {folder}/train because they are in no class folder: 1",
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_all_suffixes_are_read_by_their_content(tmp_path: Path, suffix: str) -> None:
    """Named in lower and upper case, in a class's folder and below it."""
    draw(tmp_path / "x.png", 7)
    for name in (f"a{suffix}", f"b{suffix.upper()}", f"2024/june/c{suffix}"):
        path = tmp_path / "train/only" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "x.png").read_bytes())
    train = load_folder(tmp_path, "train", IMAGE)
    assert train.images[:, 0, 0, 0].tolist() == [7, 7, 7]
    assert train.notes == ()


@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.gif", "a.jfif", "a.ppm", "a.bmp", "a.webp"])
def test_formats_in_folders(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "train/only" / name, 255)
    assert np.unique(load_folder(tmp_path, "train", IMAGE).images).tolist() == [255]


def test_images_below_a_class_are_of_that_class(folder: Path) -> None:
    draw(folder / "train/cat/2024/1.png", 60)
    draw(folder / "train/cat/2023/b/2.png", 70)
    draw(folder / "train/cat/.hidden/3.png", 80)
    (folder / "train/cat/again").symlink_to(folder / "train/cat")  # round and round
    (folder / "elsewhere").mkdir()
    draw(folder / "elsewhere/4.png", 90)
    (folder / "train/dog/linked").symlink_to(folder / "elsewhere")
    train = load_folder(folder, "train", IMAGE)
    assert train.images[:, 4, 6, 0].tolist() == [70, 60, 20, 30, 255, 10, 90]
    assert train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert class_counts(folder) == {"cat": 5, "dog": 2}


def test_a_link_that_leads_nowhere_is_said(folder: Path) -> None:
    (folder / "train/cat/z.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"1 of 5 images in .*z\.png does not exist"):
        load_folder(folder, "train", IMAGE)


def test_a_pipe_is_no_image(folder: Path) -> None:
    os.mkfifo(folder / "train/cat/z.png")
    with pytest.raises(DataError, match=r"z\.png cannot be decoded, as it is no file"):
        load_folder(folder, "train", IMAGE)


def test_one_class(tmp_path: Path) -> None:
    draw(tmp_path / "train/only/1.png")
    assert load_folder(tmp_path, "train", IMAGE).class_names == ("only",)


def test_labels_that_do_not_match(folder: Path) -> None:
    draw(folder / "val/wolf/1.png")
    draw(folder / "val/fox/1.png")
    with pytest.raises(DataError, match=r"labels of .*val do not match .*extra classes fox, wolf;"):
        load_folder(folder, "test", IMAGE)


def test_classes_that_the_test_split_lacks_are_named(folder: Path) -> None:
    assert load_folder(folder, "test", IMAGE).notes == (f"{folder}/val has no images of cat",)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_test_split_needs_no_other(tmp_path: Path, split: str) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / split / name / "1.png")
    test = load_folder(tmp_path, "test", IMAGE)
    assert (test.class_names, test.labels.tolist(), test.notes) == (("cat", "dog"), [0, 1], ())
    assert class_counts(tmp_path, "test") == {"cat": 1, "dog": 1}


def test_missing_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone cannot be read .*it needs train/CLASS/ and val/"):
        load_folder(tmp_path / "gone", "train", IMAGE)
    (folder / "val").rename(folder / "validation")
    with pytest.raises(
        DataError, match=r"cannot be read at .*pets/test or .*pets/val \(No such file"
    ):
        load_folder(folder, "test", IMAGE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("n" * 300, "File name too long"), ("a\0b", "null"), ("~nobody-of-that-name", "home dir")],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_that_cannot_be(name: str, reason: str, split: Literal["train", "test"]) -> None:
    with pytest.raises(DataError, match=f"cannot be read at .*{reason}.*it needs train/CLASS/"):
        load_folder(Path(name), split, IMAGE)


def test_a_folder_without_rights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"pets cannot be read at .*train \(Permission denied\)"):
        load_folder(folder, "train", IMAGE)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="holds no class folders"):
        load_folder(tmp_path, "train", IMAGE)
    (tmp_path / "train/cat").mkdir()
    with pytest.raises(DataError, match=r"holds no images: put \.jpg \.jpeg \.jpe \.jfif \.png"):
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


def test_a_class_of_which_no_image_is_left_is_named(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        load_folder(folder, "train", IMAGE, on_corrupt="skip")
    assert str(caught.value) == (
        f"class folders of {folder}/train without an image that can be used: dog (image "
        f"{folder}/train/dog/1.png is not an image that can be read: use one of JPEG, PNG, WebP, "
        "GIF, BMP, TIFF, PPM); mend the images, or remove the folders"
    )
    draw(folder / "val/cat/1.png")
    (folder / "val/cat/1.png").write_bytes(b"broken")
    test = load_folder(folder, "test", IMAGE, on_corrupt="skip")
    assert test.labels.tolist() == [1, 1]
    assert test.skipped == ("val/cat/1.png",)
    assert test.notes == (f"{folder}/val has no images of cat",)


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


# -- several processes, progress, counts ----------------------------------------------------------


def test_processes_give_what_threads_give(folder: Path) -> None:
    for number in range(70):
        draw(folder / f"train/cat/n{number:02}.png", number)
    spoil(folder, 2)
    calls: list[list[tuple[int, int]]] = [[], []]
    threads, processes = (
        load_folder(
            folder,
            "train",
            IMAGE,
            "skip",
            workers=workers,
            progress=lambda *call, seen=seen: seen.append(call),
        )
        for workers, seen in zip((0, 2), calls, strict=True)
    )
    np.testing.assert_array_equal(threads.images, processes.images)
    np.testing.assert_array_equal(threads.labels, processes.labels)
    assert threads.skipped == processes.skipped == ("train/dog/bad0.jpg", "train/dog/bad1.jpg")
    assert calls[0] == calls[1] == [(32, 76), (64, 76), (76, 76)]
    assert not multiprocessing.active_children()


def test_processes_name_corrupt_images(folder: Path) -> None:
    spoil(folder, 2)
    with pytest.raises(DataError, match=r"2 of 6 images in .*bad0\.jpg is empty.*bad1\.jpg"):
        load_folder(folder, "train", IMAGE, workers=3)
    assert not multiprocessing.active_children()


INTERRUPTED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from fracskip.config import ImageConfig
from fracskip.data import load_folder

def stop(done, total):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.killpg(0, signal.{signal})

if __name__ == "__main__":
    os.setpgid(0, 0)
    # A shell that starts tests in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    load_folder(Path(sys.argv[1]), "train", ImageConfig(size=(8, 8)), workers=2, progress=stop)
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_no_process_is_left_when_the_program_is_stopped(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """Ctrl-C goes to all processes; SIGKILL here to the program alone."""
    for number in range(200):
        draw(folder / f"train/cat/n{number:03}.png", number)
    script = tmp_path / "load.py"
    code = INTERRUPTED.replace("{signal}", kind)
    script.write_text(code if kind == "SIGINT" else code.replace("killpg(0", "kill(os.getpid()"))
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    children = [int(word) for word in done.stdout.split()]
    assert len(children) == 2
    if kind == "SIGINT":
        assert done.stderr.count("Traceback") == 1, done.stderr  # the program's own
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))


def test_images_are_counted_without_decoding(folder: Path) -> None:
    spoil(folder, 1)
    assert class_counts(folder) == {"cat": 3, "dog": 2}
    assert class_counts(folder, "test") == {"cat": 0, "dog": 2}
    draw(folder / "val/fox/1.png")
    with pytest.raises(DataError, match="extra classes fox"):
        class_counts(folder, "test")


# -- resize and centre ----------------------------------------------------------------------------


def gradient(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack((rows * 255 // height, columns * 255 // width, 0 * rows), -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 24), (28, 28)])
def test_the_centre_of_a_resized_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    gradient(tmp_path / "train/one/1.png", *shape)
    image = ImageConfig(size=(16, 16), resize=28)
    whole = load_folder(tmp_path, "train", image.view)
    assert whole.images.shape == (1, 28, 28, 3)
    cut = load_folder(tmp_path, "train", image)
    np.testing.assert_array_equal(cut.images, whole.images[:, 6:22, 6:22])
    np.testing.assert_array_equal(central(whole, image).images, cut.images)
    assert central(cut, image) is cut
    # As torchvision's Resize(28) and CenterCrop(16) have it, to within rounding.
    height, width = shape
    side = (28, round(28 * width / height)) if height < width else (round(28 * height / width), 28)
    picture = Image.open(tmp_path / "train/one/1.png").resize(side[::-1], Image.Resampling.BILINEAR)
    top, left = (side[0] - 16) // 2, (side[1] - 16) // 2
    expected = np.asarray(picture)[top : top + 16, left : left + 16].astype(int)
    assert np.abs(expected - cut.images[0]).max() <= 4


def test_memory_is_that_of_the_view(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = ImageConfig(size=(8, 8), resize=16)
    monkeypatch.setattr(imageset, "MAX_BYTES", 4 * 16 * 16 * 3 - 1)
    with pytest.raises(DataError, match="pets would take"):
        load_folder(folder, "train", image.view)
    assert len(load_folder(folder, "train", image)) == 4
