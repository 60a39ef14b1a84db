"""What the command line says of image folders and of folders with a data set's files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]  # conftest.Answer


def draw(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)


def test_classes_are_those_of_a_test_split_alone(fracskip: Run, checkpoint_file: Path) -> None:
    draw("pets/val/blue/1.png", "pets/val/green/1.png", "pets/val/grey/1.png")
    assert fracskip("eval", checkpoint_file, "--data", "folder:pets").error == (
        "folder:pets has the classes blue, green, grey, the network was trained for blue, green, "
        "red: give a data set with the same classes (it lacks red, the network has no grey)"
    )


def test_what_a_folder_lacks_is_said(fracskip: Run, checkpoint_file: Path) -> None:
    draw("pets/test/blue/1.png", "pets/test/blue/2024/2.TIF")
    for name in ("green", "red"):
        Path("pets/test", name).mkdir()
    Path("pets/test/red/notes.txt").touch()
    answer = fracskip("eval", checkpoint_file, "--data", "folder:pets", "--json", "r.json")
    assert answer.code == 0
    assert json.loads(Path("r.json").read_text())["images"] == 2
    assert answer.err.splitlines() == [
        "note: files left out of pets/test because their names are not those of images (1): .txt "
        "(1); read are .jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm",
        "note: pets/test has no images of green, red",
    ]


def test_a_name_of_300_bytes(fracskip: Run, checkpoint_file: Path) -> None:
    name = "n" * 300
    assert fracskip("predict", checkpoint_file, name).error == (
        f"image {name} cannot be read (File name too long): check its name and that you may read it"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "gone is no folder: give one that holds cifar-10-binary.tar.gz or"),
        ("pipe", "pipe is no folder: give one that holds cifar-10-binary.tar.gz or"),
        ("", ". does not hold data set cifar10: looked for cifar-10-binary.tar.gz or"),
        ("n" * 300, f"{'n' * 300} cannot be read (File name too long): give a folder that holds"),
        ("deep", "deep is damaged or not in the layout of CIFAR-10 (maximum recursion depth"),
    ],
)
def test_data_from_places_that_do_not_hold_it(fracskip: Run, name: str, words: str) -> None:
    os.mkfifo("pipe")
    Path("deep").mkdir()
    pixels = Image.new("RGB", (1024, 1))
    for number in range(1, 6):
        pixels.save(f"deep/data_batch_{number}.png")
    pixels.save("deep/test_batch.png")
    Path("deep/test_lables.json").write_text("[0]")
    Path("deep/train_lables.json").write_text("[" * 100_000)
    assert fracskip("data", "cifar10", "--from", name).error.startswith(words)
