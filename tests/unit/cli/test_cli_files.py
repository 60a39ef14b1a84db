"""Files that are no files: whatever a name leads to, a command ends, and says in one line why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]  # conftest.Answer

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")

LONG = "n" * 300
SECONDS = 60


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """A command that waits for a pipe would wait for ever."""

    def fail(*_: object) -> None:
        raise AssertionError(f"the command did not end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(kind: str, name: str) -> str:
    """Something of a kind; its name."""
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "folder":
        Path(name).mkdir()
    elif kind == "device":
        Path(name).symlink_to("/dev/zero")
    elif kind == "full":
        Path(name).symlink_to("/dev/full")
    elif kind == "long":
        return LONG + name
    elif kind == "barred":
        Path(name).write_bytes(b"x")
        Path(name).chmod(0)
    return name


as_root = os.geteuid() == 0 if hasattr(os, "geteuid") else False
BARRED = pytest.param("barred", marks=pytest.mark.skipif(as_root, reason="root may read all"))
DATA, WEIGHTS = "folder:{pictures}", "--weights"
PLAIN = ("--model", "resnet8", "--size", "8")

READS: dict[str, tuple[str, tuple[str, ...]]] = {
    # what it is: the name of a file of that kind, and the words
    "eval": ("x.safetensors", ("eval", "{x}", "--data", DATA)),
    "eval, bundle": ("x.fsk", ("eval", "{x}", "--data", DATA)),
    "eval, weights": ("x.safetensors", ("eval", *PLAIN, WEIGHTS, "{x}", "--data", DATA)),
    "eval, data": ("x", ("eval", "{net}", "--data", "folder:{x}")),
    "sweep": ("x.safetensors", ("sweep", "{x}", "--data", DATA)),
    "predict": ("x.safetensors", ("predict", "{x}", "a.png")),
    "predict, bundle": ("x.fsk", ("predict", "{x}", "a.png")),
    "predict, image": ("x.png", ("predict", "{net}", "{x}")),
    "export": ("x.safetensors", ("export", "{x}", "--to", "y.fsk")),
    "export, weights": ("x.safetensors", ("export", *PLAIN, WEIGHTS, "{x}", "--to", "y.fsk")),
    "bench": ("x.safetensors", ("bench", "{x}", "--data", DATA)),
    "bench, bundle": ("x.fsk", ("bench", "{x}", "--data", DATA)),
    "bench, backbone": (
        "x.safetensors",
        ("bench", "{net}", "--data", DATA, "--engines", "torch", "--backbone", "{x}"),
    ),
    "train": ("x.toml", ("train", "{x}")),
    "train, weights": (
        "x.safetensors",
        ("train", "--model", "resnet8", WEIGHTS, "{x}", "--data", DATA, "--size", "8"),
    ),
    "report": ("x.json", ("report", "{x}")),
    "data": ("x", ("data", "cifar10", "--from", "{x}")),
}


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "long", BARRED])
@pytest.mark.parametrize("case", READS)
def test_what_is_read(
    fracskip: Run, case: str, kind: str, checkpoint_file: Path, pictures: Path
) -> None:
    name, words = READS[case]
    Image.new("RGB", (8, 8)).save("a.png")
    x = make(kind, name)
    answer = fracskip(*(w.format(x=x, net=checkpoint_file, pictures=pictures) for w in words))
    assert x in answer.error
    assert len(answer.error) < 2000
    assert answer.out == ""


WRITES: dict[str, tuple[str, tuple[str, ...]]] = {
    "eval": ("x.json", ("eval", "{net}", "--data", DATA, "--json", "{x}")),
    "predict": ("x.json", ("predict", "{net}", "a.png", "--json", "{x}")),
    "export": ("x.fsk", ("export", "{net}", "--to", "{x}")),
    "report": ("x.html", ("report", "r.json", "--out", "{x}")),
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Path, pictures: Path) -> str:
    import json

    from fracskip.checkpoint import load
    from fracskip.data import load_split
    from fracskip.evaluation import evaluate

    net = load(checkpoint_file)
    data = load_split(f"folder:{pictures}", "test", net.spec.image)
    return json.dumps(evaluate(net, data))


@pytest.mark.parametrize("kind", ["pipe", "folder", "full", "long"])
@pytest.mark.parametrize("case", WRITES)
def test_what_is_written(
    fracskip: Run, case: str, kind: str, checkpoint_file: Path, pictures: Path, record: str
) -> None:
    name, words = WRITES[case]
    Image.new("RGB", (8, 8)).save("a.png")
    Path("r.json").write_text(record)
    x = make(kind, name)
    before = sorted(os.listdir("."))
    answer = fracskip(*(w.format(x=x, net=checkpoint_file, pictures=pictures) for w in words))
    assert x in answer.error
    # Nothing was put in its place, and nothing is left beside it.
    assert sorted(os.listdir(".")) == before
    assert kind != "full" or os.readlink(x) == "/dev/full"
    assert kind != "pipe" or Path(x).is_fifo()


def test_a_pipe_that_is_read_and_a_name_of_the_greatest_length(
    fracskip: Run, checkpoint_file: Path, python: Run
) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    longest = "n" * 250 + ".json"
    assert fracskip("predict", checkpoint_file, "a.png", "--json", longest).code == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert fracskip("predict", checkpoint_file, "a.png", "--json", "pipe").code == 0
        assert os.read(reader, 1 << 16) == Path(longest).read_bytes()
    finally:
        os.close(reader)
