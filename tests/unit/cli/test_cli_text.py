"""Text that comes from files: a terminal and a page show it and never obey it."""

from __future__ import annotations

import html
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fracskip.checkpoint import save
from fracskip.cli import commands, console
from fracskip.dynamic import DynamicNetwork
from fracskip.text import visible

Run = Callable[..., Any]  # conftest.Answer

# Each with what is shown of it.
HOSTILE = {
    "clear\x1b[2Jscreen": r"clear\x1b[2Jscreen",
    "bell\x07 csi\x9b31m": r"bell\x07 csi\x9b31m",
    "line\nend\r": r"line\nend\r",
    "rtl\u202egpj.exe": r"rtl\u202egpj.exe",
    "zero\u200bwidth\u2066": r"zero\u200bwidth\u2066",
    "no\udce9unicode": r"no\udce9unicode",
    "[red]markup[bold]": "[red]markup[bold]",
    ":cat: <b>&": ":cat: <b>&",
    "dollar $x_1$": "dollar $x_1$",
    "café 猫": "café 猫",
}
NAMES = tuple(sorted(HOSTILE))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_shown_of_a_text(text: str) -> None:
    assert visible(text) == HOSTILE[text]


def check(shown: str, names: tuple[str, ...] = NAMES) -> None:
    """Nothing but printable characters and line ends; and each name, spelled out."""
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    for name in names:
        assert HOSTILE[name] in shown, name


@pytest.fixture
def network(make_net: Callable[..., DynamicNetwork]) -> str:
    save(make_net(class_names=NAMES), "net.safetensors")
    return "net.safetensors"


@pytest.fixture
def pets() -> str:
    for split in ("train", "val"):
        for name in NAMES:
            folder = Path("pets", split, name)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return "folder:pets"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_eval_predict_and_report(fracskip: Run, network: str, pets: str) -> None:
    data = Path("b\x1b[31m.json")
    answer = fracskip("eval", network, "--data", pets, "--json", data, "--examples", "20")
    assert (answer.code, answer.err) == (0, "")
    check(answer.out, ())
    assert answer.out.endswith(r"record: b\x1b[31m.json" + "\n")

    files = sorted(Path("pets/val").glob("*/*.png"))
    answer = fracskip("predict", network, *files, "--json", "p.json")
    assert (answer.code, answer.err) == (0, "")
    check(answer.out, ())
    rows = json.loads(Path("p.json").read_text())["predictions"]
    for row in rows:
        assert visible(row["file"]) in answer.out
        assert visible(row["class"]) in answer.out

    answer = fracskip("report", data, "--out", "page\x07.html")
    assert (answer.code, answer.out, answer.err) == (0, "report: page\\x07.html\n", "")
    page = Path("page\x07.html").read_text()
    check(html.unescape(page))
    assert "<b>&" not in page


@pytest.mark.parametrize("name", NAMES)
def test_errors(fracskip: Run, network: str, pets: str, checkpoint_file: Path, name: str) -> None:
    Path(name).write_bytes(b"no image")
    for words in (
        ("predict", network, name),
        ("eval", name, "--data", pets),
        ("eval", network, "--data", name),
        ("report", name),
        ("train", name),
        (name,),
    ):
        error = fracskip(*words).error
        check(error, ())
        # An error is one line, whatever it quotes; `repr` doubles backslashes.
        spoken = error.replace("\\\\", "\\").replace(r"\n", " ").replace(r"\r", "")
        assert HOSTILE[name].replace(r"\n", " ").replace(r"\r", "") in spoken, words
    check(fracskip("eval", checkpoint_file, "--data", pets).error, ())


def test_warnings_notes_and_faults(fracskip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: object) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of \x1b[2J", stacklevel=1)
        with console.TrainingProgress() as watcher:
            watcher.note("note \x07[red] :cat:")
        raise RuntimeError("fault \x9b")

    monkeypatch.setattr(commands, "run_doctor", run)
    answer = fracskip("doctor")
    assert answer.code == 1
    check(answer.err, ())
    lines = answer.err.splitlines()
    assert lines[:2] == [r"fracskip: warning: of \x1b[2J", r"note: note \x07[red] :cat:"]
    assert r"RuntimeError: fault \x9b" in lines


def test_names_of_files_are_bytes(fracskip: Run, checkpoint_file: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (8, 8)).save(name)
    answer = fracskip("predict", checkpoint_file, name)
    assert (answer.code, answer.err) == (0, "")
    assert r"caf\udce9.png" in answer.out
