import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builders import arrays, cifar_binary, cifar_npm, png, write

from fracskip.data import cifar
from fracskip.errors import DataError

MADE = arrays(10, 3, (32, 32, 3), 10)


@pytest.mark.parametrize("layout", [cifar.CIFAR10_BINARY, cifar.CIFAR100_BINARY])
def test_binary_records(layout: cifar.Layout) -> None:
    label_bytes = 1 if layout is cifar.CIFAR10_BINARY else 2
    parsed = layout.parse(cifar_binary(MADE, label_bytes))
    for key, expected in MADE.items():
        np.testing.assert_array_equal(parsed[key], expected)
        assert parsed[key].dtype == expected.dtype


def test_where_a_byte_of_a_record_lands() -> None:
    record = bytearray(3073)
    record[0] = 7  # the label
    record[1 + 1024 + 2 * 32 + 5] = 200  # green, row 2, column 5
    batch = {name: bytes(record) for name in cifar.CIFAR10_BINARY.files}
    parsed = cifar.CIFAR10_BINARY.parse(batch)
    assert parsed["test_labels"].tolist() == [7]
    assert np.argwhere(parsed["test_images"]).tolist() == [[0, 2, 5, 1]]
    assert parsed["train_images"].shape == (5, 32, 32, 3)


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * 3074])
def test_a_batch_that_is_no_whole_number_of_records(content: bytes) -> None:
    batch = dict.fromkeys(cifar.CIFAR10_BINARY.files, content)
    with pytest.raises(DataError, match=f"data_batch_1.bin has {len(content)} bytes.*3073"):
        cifar.CIFAR10_BINARY.parse(batch)


def test_rows_of_the_npm_package() -> None:
    parsed = cifar.parse_rows(cifar_npm(MADE))
    for key, expected in MADE.items():
        np.testing.assert_array_equal(parsed[key], expected)


def test_rows_of_another_width() -> None:
    files = {**cifar_npm(MADE), "test_batch.png": png(np.zeros((3, 1023, 3), dtype=np.uint8))}
    with pytest.raises(DataError, match=r"\(3, 1023, 3\), not \(N, 1024, 3\)"):
        cifar.parse_rows(files)


@pytest.mark.parametrize(
    "labels", [{"a": 1}, [1.5], ["1"], [True], [[1]], None, [-1], [2**31], [10**400]]
)
def test_labels_that_are_no_list_of_numbers(labels: object) -> None:
    files = {**cifar_npm(MADE), "test_lables.json": json.dumps(labels).encode()}
    with pytest.raises(DataError, match="one list of whole numbers from 0"):
        cifar.parse_rows(files)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "is damaged or not in the layout of CIFAR-10"),
        (b"[" + b"[]," * 1_400_000 + b"[]]", "test_lables.json holds more than 4,194,304 bytes"),
        (b"[1, 2", "is damaged or not in the layout of CIFAR-10"),
        (b"[NaN]", "labels must be one list of whole numbers from 0"),
        (b"[" + b"9" * 5000 + b"]", "is damaged or not in the layout of CIFAR-10"),
        (b"\xff\xfe\xfa", "is damaged or not in the layout of CIFAR-10"),
    ],
)
def test_labels_that_are_no_json(content: bytes, words: str, tmp_path: Path) -> None:
    layout = replace(cifar.CIFAR10_NPM, digests={})
    write(tmp_path, {**cifar_npm(MADE), "test_lables.json": content})
    with pytest.raises(DataError, match=words) as caught:
        layout.read(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """2 x 2 tiles a sheet; tile i of sheet s is filled with 10 s + i."""
    monkeypatch.setattr(cifar, "TILES", 2)
    files = {}
    for number, name in enumerate(cifar.CIFAR100_SHEETS.files[:6]):
        values = 10 * number + np.arange(4, dtype=np.uint8).reshape(2, 2)
        tiles = values.repeat(32, 0).repeat(32, 1)[..., None].repeat(3, 2)
        files[name] = png(np.ascontiguousarray(tiles))
    labels = {"train": list(range(20)), "test": [96, 97, 98, 99]}
    return {**files, "labels.json": json.dumps(labels).encode()}


def test_sheets(sheets: dict[str, bytes]) -> None:
    parsed = cifar.parse_sheets(sheets)
    first = parsed["train_images"].reshape(20, -1)
    assert (first == first[:, :1]).all()
    assert first[:, 0].tolist() == [10 * s + i for s in range(5) for i in range(4)]
    assert parsed["test_images"][:, 0, 0, 0].tolist() == [50, 51, 52, 53]
    assert parsed["test_labels"].tolist() == [96, 97, 98, 99]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels.json": b"[1, 2]"}, "needs the lists 'train' and 'test'"),
        ({"labels.json": b'{"train": [1]}'}, "needs the lists"),
        ({"train_0.webp": png(np.zeros((64, 32, 3), dtype=np.uint8))}, r"not 2 x 2 tiles"),
        ({"train_0.webp": b"no image"}, "not an image"),
    ],
)
def test_sheets_that_are_none(
    change: dict[str, bytes], words: str, sheets: dict[str, bytes]
) -> None:
    with pytest.raises(DataError, match=words):
        cifar.parse_sheets({**sheets, **change})


def test_class_names() -> None:
    assert len(cifar.CIFAR10_CLASSES) == 10
    assert len(set(cifar.CIFAR100_CLASSES)) == 100
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)


def test_every_layout_is_pinned_by_a_published_sum_or_by_its_arrays() -> None:
    for layout in (cifar.CIFAR10_BINARY, cifar.CIFAR10_NPM, cifar.CIFAR100_SHEETS):
        assert len(layout.digests) == 4
    official = cifar.CIFAR100_BINARY
    assert set(official.md5s) == {official.archive, *official.files}


def test_a_re_split_is_called_one() -> None:
    assert cifar.CIFAR100_SHEETS.title == "CIFAR-100 (re-split)"
    assert "re-split" in cifar.CIFAR100_SHEETS.origin
