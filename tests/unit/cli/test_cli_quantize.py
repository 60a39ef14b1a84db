"""`fracskip quantize`: weights and images in, integers out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fracskip as library
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


@pytest.mark.parametrize("bits", ["8", "6"])
def test_a_bundle_and_how_close_it_is(fracskip: Run, pictures: Path, bits: str) -> None:
    words = ("--data", f"folder:{pictures}", "--options", bits, "--to", "q.fsk", "--images", 20)
    answer = fracskip("quantize", *PLAIN, *words)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("resnet8: q.fsk (")
    assert lines[1].startswith(f"20 training images of folder:{pictures}; closest to the float")
    assert f"network: {bits} bits " in lines[1]
    assert lines[2].startswith("on 20 other training images ")
    session = InferenceSession("q.fsk")
    assert session.options.labels == (bits,)
    assert session.class_names == ("blue", "green", "red")


def test_a_checkpoint_of_a_plain_network_to_a_checkpoint(fracskip: Run, pictures: Path) -> None:
    library.save(library.checkpoint.load_plain("resnet8", "p.safetensors"), "n.safetensors")
    words = ("--data", f"folder:{pictures}", "--to", "q.safetensors")
    assert fracskip("quantize", "n.safetensors", *words).code == 0
    net = library.load("q.safetensors")
    assert (net.options.labels, net.spec.quant.stream) == (("8",), "int8")
    assert net.notes["quantisation"]["images"] == 24
    assert fracskip("export", "q.safetensors", "--to", "q.fsk").code == 0
    again = fracskip("quantize", "q.safetensors", *words)
    assert again.error.startswith("q.safetensors has the options 8: a plain network is quantised")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "q.txt"), "q.txt ends in none of .fsk, .onnx and .safetensors: choose one"),
        (("--to", "q.fsk", "--options", "5x"), "5x"),
        (("--to", "q.fsk", "--images", "0"), "'0' is given, a whole number from 1 is needed"),
        (("--data", "nothing", "--to", "q.fsk"), "nothing"),
    ],
)
def test_what_can_not_be_is_said_in_a_line(
    fracskip: Run, pictures: Path, words: tuple[str, ...], message: str
) -> None:
    data = () if "--data" in words else ("--data", f"folder:{pictures}")
    assert message in fracskip("quantize", *PLAIN, *data, *words).error
    assert not Path("q.fsk").exists()
