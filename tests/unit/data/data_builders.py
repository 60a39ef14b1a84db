"""Tiny data sets in the formats of the real ones."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fracskip.data.imageset import ImageSet
from fracskip.data.store import RawSet

Arrays = dict[str, np.ndarray]


def raw_set(size: int = 4, channels: int = 3, title: str = "Tiny") -> RawSet:
    return RawSet(title, "made up", ("cat", "dog"), arrays(8, 4, (size, size, channels), 2))


def arrays(train: int, test: int, shape: tuple[int, int, int], classes: int) -> Arrays:
    rng = np.random.default_rng(7)
    made: Arrays = {}
    for split, count in (("train", train), ("test", test)):
        made[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = np.arange(count, dtype=np.int64) % classes
    return made


def image_set(labels: list[int], classes: int = 2) -> ImageSet:
    """Images that hold their own index, so that they can be told apart."""
    count = len(labels)
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(2, 1)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet(images, np.array(labels, dtype=np.int64), names, "Tiny", "train", "made up")


def cifar_binary(made: Arrays, label_bytes: int) -> dict[str, bytes]:
    """The official binary files; CIFAR-100's coarse labels are all 99."""

    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        coarse = [99] * (label_bytes - 1)
        return b"".join(
            bytes([*coarse, label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(images, labels, strict=True)
        )

    test = records(made["test_images"], made["test_labels"])
    if label_bytes == 2:
        return {
            "train.bin": records(made["train_images"], made["train_labels"]),
            "test.bin": test,
        }
    parts = zip(
        np.array_split(made["train_images"], 5),
        np.array_split(made["train_labels"], 5),
        strict=True,
    )
    batches = {f"data_batch_{i}.bin": records(*part) for i, part in enumerate(parts, 1)}
    return {**batches, "test_batch.bin": test}


def cifar_npm(made: Arrays) -> dict[str, bytes]:
    batches = {
        f"data_batch_{i}.png": png(part.reshape(len(part), 1024, 3))
        for i, part in enumerate(np.array_split(made["train_images"], 5), 1)
    }
    return {
        **batches,
        "test_batch.png": png(made["test_images"].reshape(-1, 1024, 3)),
        "train_lables.json": json.dumps(made["train_labels"].tolist()).encode(),
        "test_lables.json": json.dumps(made["test_labels"].tolist()).encode(),
    }


def fashion_idx(made: Arrays, packed: bool) -> dict[str, bytes]:
    names = {
        "train_images": "train-images-idx3-ubyte",
        "train_labels": "train-labels-idx1-ubyte",
        "test_images": "t10k-images-idx3-ubyte",
        "test_labels": "t10k-labels-idx1-ubyte",
    }
    files = {}
    for key, name in names.items():
        values = made[key].astype(np.uint8)
        values = values[..., 0] if values.ndim == 4 else values
        header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        content = header + values.tobytes()
        files[f"{name}.gz" if packed else name] = gzip.compress(content) if packed else content
    return files


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, inner: str, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
