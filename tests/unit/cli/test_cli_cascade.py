"""`fracskip cascade`, `tune`, and the other commands on a cascade."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fracskip.cli import cascade as cascade_command
from fracskip.cli import commands
from fracskip.data import ImageSet
from fracskip.runtime.cascade_bundle import CascadeBundle, read_any
from support.small_cascades import networks, small_cascade

Run = Callable[..., Any]
COUNT = 600


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, fracskip: Run) -> dict[str, Path]:
    """Two networks and a cascade; the data set is noise of the asked size."""
    small, large = networks((8, 8), (12, 10))
    Path("small.fsk").write_bytes(small.data)
    Path("large.fsk").write_bytes(large.data)
    Path("both.fsk").write_bytes(small_cascade(((8, 8), (12, 10))).data)

    def load(name: str, split: str, image: Any, progress: Any = None) -> ImageSet:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (COUNT, *image.size, 3), dtype=np.uint8)
        labels = np.arange(COUNT) % 5
        return ImageSet(images, labels, small.plan.class_names, "noise", split, "here")

    for module in (cascade_command, commands):
        monkeypatch.setattr(module, "load_split", load)
    return {}


@pytest.mark.usefixtures("files")
def test_cascade_and_tune(fracskip: Run) -> None:
    answer = fracskip("cascade", "small.fsk", "large.fsk", "--data", "noise", "--to", "two.fsk")
    assert (answer.code, answer.err) == (0, "")
    assert "12x10" in answer.out
    assert "cascade: two.fsk" in answer.out
    found = read_any("two.fsk")
    assert isinstance(found, CascadeBundle)
    assert found.plan.images == COUNT - COUNT // 3
    answer = fracskip("tune", "two.fsk")
    assert (answer.code, answer.err) == (0, "")
    assert "µs an image" in answer.out
    answer = fracskip("tune", "small.fsk")
    assert (answer.code, answer.err) == (0, "")
    assert "every block at" in answer.out


@pytest.mark.usefixtures("files")
def test_commands_take_cascades(fracskip: Run) -> None:
    answer = fracskip("eval", "both.fsk", "--data", "noise", "--json", "e.json")
    assert (answer.code, answer.err) == (0, "")
    record = json.loads(Path("e.json").read_text())
    assert record["schema"] == "fracskip.cascade/1"
    assert "0 > 1" in answer.out
    answer = fracskip("sweep", "both.fsk", "--data", "noise", "--json", "s.json")
    assert (answer.code, answer.err) == (0, "")
    assert len(json.loads(Path("s.json").read_text())["points"]) == 9
    answer = fracskip("report", "e.json", "s.json", "--out", "r.html")
    assert (answer.code, answer.err) == (0, "")
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save("x.png")
    answer = fracskip("predict", "both.fsk", "x.png", "--json", "p.json")
    assert (answer.code, answer.err) == (0, "")
    (row,) = json.loads(Path("p.json").read_text())["predictions"]
    assert row["members"] in ([0], [0, 1])
    assert row["class"].startswith("class ")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cascade", "small.fsk", "large.fsk", "--to", "x.zip"), "x.zip ends in neither .fsk nor"),
        (("cascade", "small.fsk", "--to", "x.fsk"), "a cascade of 1 members has nothing to"),
        (("cascade", "small.fsk", "both.fsk", "--to", "x.fsk"), "a member is a cascade itself"),
        (("cascade", "small.fsk", "gone.fsk", "--to", "x.fsk"), "bundle gone.fsk does not exist"),
        (("eval", "both.fsk", "--budget", "0.1"), "budget 0.1 is out of this cascade's reach"),
    ],
)
def test_what_can_t_be_done_is_said(fracskip: Run, words: tuple[str, ...], message: str) -> None:
    answer = fracskip(*words, "--data", "noise")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.error
