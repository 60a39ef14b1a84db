"""Fashion-MNIST: the layouts in which it can be had.

Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747. The files are in
the IDX format: a big-endian header (magic number, sizes), then one byte a value.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracskip.data.layout import Arrays, Files, Layout, gunzip
from fracskip.errors import DataError

HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the files."""

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MAX_IDX_BYTES = 16 + 60_000 * 28 * 28
"""Of the largest file, the training images, with its header."""

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}

DIGESTS = {
    "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train_labels": "e3245b63f7c40d1c8b652835f19744d970c1613b40ddac6bcfc87b9c46e16a0b",
    "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "test_labels": "d51d859896c55775b9e9e219b77ff03bcec1b6ac322f313544dc3f9e7bc94fae",
}
OFFICIAL_MD5S = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""Of the official downloads; Debian packs the same contents into other .gz files."""


def parse_idx(files: Files) -> Arrays:
    """Reads the four IDX files, packed (.gz) or not.

    Raises:
        DataError: if a header does not fit its file.
    """
    unpacked = {
        name.removesuffix(".gz"): gunzip(content, name, MAX_IDX_BYTES)
        if name.endswith(".gz")
        else content
        for name, content in files.items()
    }
    arrays = {key: _idx(name, unpacked[name]) for key, name in FILES.items()}
    return {
        key: array[..., np.newaxis] if key.endswith("images") else array.astype(np.int64)
        for key, array in arrays.items()
    }


def _idx(name: str, content: bytes) -> NDArray[np.uint8]:
    dimensions = 3 if "idx3" in name else 1
    header = struct.Struct(f">HBB{dimensions}I")
    if len(content) < header.size:
        raise DataError(f"{name} has {len(content)} bytes, too few for an IDX header")
    zero, kind, rank, *shape = header.unpack_from(content)
    if (zero, kind, rank) != (0, 0x08, dimensions):
        raise DataError(f"{name} is no IDX file of bytes in {dimensions} dimensions")
    values = np.frombuffer(content, dtype=np.uint8, offset=header.size)
    if values.size != math.prod(shape):
        raise DataError(f"{name} holds {values.size} values, its header announces {tuple(shape)}")
    return values.reshape(shape)


FASHION_PACKED = Layout(
    title="Fashion-MNIST",
    origin=f"IDX files as at {HOME}, verified against the official arrays",
    class_names=CLASSES,
    files=tuple(OFFICIAL_MD5S),
    parse=parse_idx,
    folder="fashion-mnist",
    max_bytes=MAX_IDX_BYTES,
    digests=DIGESTS,
)
FASHION_PLAIN = replace(FASHION_PACKED, files=tuple(FILES.values()))
FASHION_DEBIAN = replace(
    FASHION_PACKED,
    origin="Debian package dataset-fashion-mnist, verified against the official arrays",
)
