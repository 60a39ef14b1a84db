import gzip

import numpy as np
import pytest
from data_builders import arrays, fashion_idx

from fracskip.data import fashion
from fracskip.data.layout import gunzip
from fracskip.errors import DataError

MADE = arrays(4, 3, (28, 28, 1), 10)
TEST_LABELS = "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(packed: bool) -> None:
    parsed = fashion.parse_idx(fashion_idx(MADE, packed))
    assert set(parsed) == set(MADE)
    for key, expected in MADE.items():
        np.testing.assert_array_equal(parsed[key], expected)
        assert parsed[key].dtype == expected.dtype


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes, too few for an IDX header"),
        (b"\0\0\x08\x01\0\0\0", "too few"),
        (b"\0\0\x08\x03" + bytes(20), "no IDX file of bytes in 1 dimensions"),
        (b"\0\0\x0d\x01" + bytes(4), "no IDX file of bytes"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"holds 3 values, its header announces \(5,\)"),
        (b"\0\0\x08\x01\xff\xff\xff\xffabc", "holds 3 values"),
    ],
)
def test_files_that_are_no_idx(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fashion.parse_idx({**fashion_idx(MADE, False), TEST_LABELS: content})


def test_a_file_that_unpacks_without_end() -> None:
    name = "train-images-idx3-ubyte.gz"
    files = {**fashion_idx(MADE, packed=True), name: gzip.compress(bytes(48_000_000), 1)}
    with pytest.raises(DataError, match=rf"{name} holds more than 47,040,016 bytes"):
        fashion.parse_idx(files)
    assert len(gunzip(gzip.compress(bytes(100)), name, 100)) == 100
    with pytest.raises(DataError, match=rf"{name} holds more than 99 bytes: it is not the file"):
        gunzip(gzip.compress(bytes(100)), name, 99)


def test_official_and_debian_files_are_held_to_the_same_arrays() -> None:
    assert len(fashion.DIGESTS) == 4
    for layout in (fashion.FASHION_PACKED, fashion.FASHION_PLAIN, fashion.FASHION_DEBIAN):
        assert layout.digests == fashion.DIGESTS
        assert len(layout.class_names) == 10
