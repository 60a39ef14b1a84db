"""The guide's snippets run, in order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def draw_photos(root: Path, count: int, seed: int) -> None:
    draw = np.random.RandomState(seed)
    for label in range(5):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = draw.randint(0, 120, (150, 160, 3))
            pixels[10 * label : 60 + 10 * label, 20:120, label % 3] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.jpg")


# Random weights are right by chance, and so short a training can leave decisions that jump past
# every budget.
@pytest.mark.filterwarnings("ignore:the network that was converted is right")
@pytest.mark.filterwarnings("ignore:decisions jump past the budgets")
def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_photos(tmp_path / "photos" / "train", 4, 0)
    draw_photos(tmp_path / "photos" / "val", 2, 1)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    snippets = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 9
    names: dict[str, object] = {}
    for snippet in snippets:
        short = snippet.replace("epochs=(25, 3, 6)", "epochs=(1, 1, 1)")
        assert ("fit(" in snippet) == (short != snippet)
        exec(compile(short, str(GUIDE), "exec"), names)
    shown = capsys.readouterr().out
    assert "layer1.1" in shown
    assert "skip 2 3 4 6 8" in shown
    assert "torch.Size([10, 5])" in shown
    assert (tmp_path / "resnet18.safetensors").exists()
    assert (tmp_path / "resnet18.fsk").exists()
    assert "portable" in shown or "native" in shown
