"""Only regular files are read, and JSON of bounded size."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fracskip import files
from fracskip.checkpoint import load, load_backbone, load_plain
from fracskip.config import load_recipe
from fracskip.errors import BundleError, CheckpointError, ConfigError, FracskipError, shortened
from fracskip.files import MAX_JSON_VALUES, parse_json, read_file, read_header
from fracskip.models import create_model
from fracskip.runtime.bundle import read_bundle

READERS: dict[str, tuple[Callable[[Path], Any], type[FracskipError]]] = {
    "checkpoint": (load, CheckpointError),
    "bundle": (read_bundle, BundleError),
    "backbone": (lambda path: load_backbone(path, create_model("resnet8")), CheckpointError),
    "plain": (lambda path: load_plain("resnet8", path), CheckpointError),
    "recipe": (load_recipe, ConfigError),
}
each_reader = pytest.mark.parametrize("name", READERS)


def refusal(name: str, path: Path) -> str:
    read, error = READERS[name]
    with pytest.raises(error) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@each_reader
def test_a_file_without_an_end_is_not_read(name: str) -> None:
    assert "/dev/zero is no regular file but a device" in refusal(name, Path("/dev/zero"))


@each_reader
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file but a device, a pipe" in refusal(name, tmp_path / "pipe")


@each_reader
def test_other_things_that_are_no_files(name: str, tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal(name, tmp_path)
    assert "does not exist; give " in refusal(name, tmp_path / "gone")
    assert "cannot be read: embedded null byte" in refusal(name, tmp_path / "a\0b")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        assert "cannot be read: No such device" in refusal(name, tmp_path / "door")


def test_a_file_of_more_than_it_may_have(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)  # takes no room on the disk
    for name in ("checkpoint", "bundle"):
        assert "has 17,179,869,185 bytes and may have 17,179,869,184" in refusal(name, path)
    path.write_bytes(b"12345")
    assert read_file(path, "it", most=5) == b"12345"
    with pytest.raises(CheckpointError, match=r"it .*sparse has 5 bytes and may have 4: give ano"):
        read_file(path, "it", most=4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 1}', "a key occurs twice"),
        (b'{"a": {"b": 1, "b": 2}}', "a key occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (MAX_JSON_VALUES + 1), "more than 524,288 values"),
        (b"[" + b"0," * MAX_JSON_VALUES + b"0]", "more than 524,288 values"),
        ("1" * 5000, "4300 digits"),
        (json.dumps(dict.fromkeys(map(str, range(4097)))), "more than 4,096 keys in one object"),
        (b"\xff", "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
    ],
)
def test_json_that_is_refused(text: bytes | str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_that_is_read() -> None:
    tree = {"a": [1, {"b": None}], "c": "é,[{"}
    assert parse_json(json.dumps(tree).encode()) == tree
    wide = dict.fromkeys(map(str, range(4096)))
    assert parse_json(json.dumps(wide)) == wide
    assert parse_json(f"[{'0,' * (MAX_JSON_VALUES - 3)}0]") == [0] * (MAX_JSON_VALUES - 2)


def test_a_header_and_a_body() -> None:
    header = b'{"__metadata__":{"x":"y"},"t":{}}'
    data = len(header).to_bytes(8, "little") + header + b"body"
    assert read_header(data, "x") == ({"t": {}}, {"x": "y"}, b"body")


def test_what_is_taken_for_a_pickle() -> None:
    for protocol in (0, 1):
        whole = pickle.dumps({"a": [1.5] * 9}, protocol)
        assert files._is_pickle(whole)
        assert not files._is_pickle(whole[:-1])  # it does not stop
    assert files._is_pickle(b"(" * (1 << 24))  # and is not read to its end
    assert not files._is_pickle(random.Random(0).randbytes(1000))
    assert not files._is_pickle(b"")


def test_a_long_message_loses_its_middle() -> None:
    said = str(ConfigError("first " + "x" * 10**6 + " last"))
    assert len(said) <= 2000
    assert said.startswith("first xxx")
    assert said.endswith("xxx last")
    assert str(ConfigError("short")) == "short"
    assert shortened("x" * 2000) == "x" * 2000
