"""`--model NAME --weights FILE` in place of a network: plain backbones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fracskip.data import load_split
from fracskip.dynamic import preprocess
from fracskip.models import create_model
from fracskip.runtime import InferenceSession

Run = Callable[..., Any]  # conftest.Answer

PLAIN = ("--model", "resnet8", "--weights", "p.safetensors", "--size", 8)


@pytest.fixture(autouse=True)
def plain() -> torch.nn.Module:
    torch.manual_seed(3)
    net = create_model("resnet8", 3, 3).eval()
    save_file(net.state_dict(), "p.safetensors")
    return net


def test_eval(fracskip: Run, plain: torch.nn.Module, pictures: Path) -> None:
    words = ("--data", f"folder:{pictures}", "--json", "r.json")
    answer = fracskip("eval", *PLAIN, *words)
    assert (answer.code, answer.err) == (0, "")
    record = json.loads(Path("r.json").read_text())
    assert fracskip("export", *PLAIN, "--to", "p.fsk").code == 0
    image = InferenceSession("p.fsk").image
    assert image.size == (8, 8)
    data = load_split(f"folder:{pictures}", "test", image)
    predicted = plain(preprocess(data.images, image)).argmax(1).numpy()
    assert record["accuracy"] == (predicted == data.labels).mean()
    assert [row["name"] for row in record["classes"]] == ["blue", "green", "red"]
    assert (record["cp"], record["bitops_ratio"], record["static"]) == (1.0, 1.0, [])
    assert (record["checkpoint"]["name"], record["checkpoint"]["options"]) == (
        "p.safetensors",
        ["full"],
    )
    assert fracskip("report", "r.json").code == 0


@pytest.mark.parametrize("count", [1, 2])
def test_predict(fracskip: Run, plain: torch.nn.Module, pictures: Path, count: int) -> None:
    """However many images there are, none of them is taken for the network."""
    files = sorted(pictures.glob("val/red/*.png"))[:count]
    assert fracskip("predict", *PLAIN, *files, "--json", "p.json").code == 0
    rows = json.loads(Path("p.json").read_text())["predictions"]
    assert [row["file"] for row in rows] == list(map(str, files))
    assert {row["class"] for row in rows} <= {"0", "1", "2"}
    assert [row["allocation"] for row in rows] == [["full"] * 2] * count


def test_bench(fracskip: Run, pictures: Path) -> None:
    words = ("--data", f"folder:{pictures}", "--engines", "torch", "--images", 4, "--rounds", 2)
    answer = fracskip("bench", *PLAIN, *words, "--json", "b.json")
    assert (answer.code, answer.err) == (0, "")
    record = json.loads(Path("b.json").read_text())
    assert record["command"][:7] == ["fracskip", "bench", *map(str, PLAIN[:5])]
    assert (record["model"]["name"], record["model"]["model"]) == ("p.safetensors", "resnet8")
    assert record["backbone"]["model"] == "resnet8"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "--model", "resnet8"), "--model resnet8 is a plain network: say where its weigh"),
        (("eval", "net", "--weights", "p"), "--weights is of a plain network: say which with --m"),
        (("predict", "net", "--size", 8, "x"), "--size is of a plain network: say which with --m"),
        (("eval", "net", *PLAIN), "unrecognized arguments: net"),
        (("eval",), "the following arguments are required: NETWORK"),
        (("predict", *PLAIN), "the following arguments are required: IMAGE"),
        (("sweep", *PLAIN), "there is nothing to sweep: use eval"),
        (("export", "--model", "resnet8", "--to", "x.fsk"), "--weights FILE"),
        (("bench", *PLAIN), "--data is missing: a plain network's file does not say"),
        (("eval", "--model", "resnet8", "--weights", "gone"), "gone does not exist"),
        (("eval", "--model", "vgg", "--weights", "p.safetensors"), "model 'vgg' is unknown"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_does_not_fit(
    fracskip: Run, words: tuple[object, ...], message: str, pictures: Path
) -> None:
    data = ("--data", f"folder:{pictures}") if words[0] in ("eval", "sweep") else ()
    assert message in fracskip(*words, *data).error


def test_other_classes(fracskip: Run, tmp_path: Path, pictures: Path) -> None:
    save_file(create_model("resnet8", 3, 5).state_dict(), "p.safetensors")
    data = f"folder:{pictures}"
    assert fracskip("eval", *PLAIN, "--data", data).error == (
        f"{data} has 3 classes, the plain network 5: give a data set with as many, in the order "
        "that it was trained with"
    )
