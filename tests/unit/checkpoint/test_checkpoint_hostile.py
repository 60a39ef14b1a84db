"""What a file says of its network reaches nothing but itself, and allocates no more than it has."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fracskip import checkpoint
from fracskip.checkpoint import load, load_plain
from fracskip.errors import CheckpointError, ConfigError, FracskipError
from fracskip.models import create_backbone, create_model
from fracskip.models.registry import without_memory
from support.hostile_files import (
    HOSTILE_CHECKPOINTS,
    Parts,
    damaged_checkpoint,
    sealed_checkpoint,
    spec_file,
)

HOSTILE_NAMES = [
    "timm/hf-hub:owner/repo",
    "timm/hf_hub:owner/repo",
    "timm/local-dir:/etc",
    "timm/local_dir:/etc",
    "timm/hf-hub:owner/repo@main",
    "timm/HF-HUB:owner/repo",
    "timm/resnet18.another_tag",
    "timm/",
    "timm/resnet1?",
    "timm/../resnet18",
    "torchvision/fasterrcnn_resnet50_fpn",
    "torchvision/quantized_resnet18",
    "torchvision/RESNET18",
    "torchvision/",
    "torchvision//etc/passwd",
    "hub/resnet18",
    "module/Net",
    "/etc/passwd",
    "https://example.com/net",
    "resnet18/../../etc",
    "resnet9999",
    "resnet\u0668",
]


class Residual(nn.Module):
    """One residual block after a convolution."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out: torch.Tensor = self.fc((x + self.second(x)).mean((2, 3)))
        return out


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """torchvision and timm, of one network each; what they are asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def get_model(name: str, **keywords: Any) -> nn.Module:
        asked.append((name, keywords))
        return Residual(keywords["num_classes"])

    def create(name: str, **keywords: Any) -> nn.Module:
        asked.append((name, keywords))
        return Residual(keywords["num_classes"], keywords["in_chans"])

    models = ModuleType("torchvision.models")
    every = ["resnet18", "fasterrcnn_resnet50_fpn", "quantized_resnet18"]

    def listed(module: object = None) -> list[str]:
        return ["resnet18"] if module is models else every

    models.__dict__.update(get_model=get_model, list_models=listed)
    vision = ModuleType("torchvision")
    vision.__dict__.update(models=models)
    timm = ModuleType("timm")
    tagged = {False: ["resnet18"], True: ["resnet18.a1_in1k"]}
    timm.__dict__.update(
        create_model=create, list_models=lambda pretrained=False: tagged[pretrained]
    )
    for name, module in (("torchvision", vision), ("torchvision.models", models), ("timm", timm)):
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.fixture
def sealed_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """No connection and no file but those in `allowed`; what was tried is in `tried`."""
    watch = SimpleNamespace(allowed=set(), tried=[])

    def refuse(*args: Any, **_: Any) -> Any:
        watch.tried.append(args)
        raise AssertionError(f"it tried to connect: {args}")

    def opening(real: Any) -> Any:
        def opened(path: Any, *args: Any, **keywords: Any) -> Any:
            if not isinstance(path, int) and str(path) not in watch.allowed:
                watch.tried.append(path)
                raise AssertionError(f"it tried to open {path}")
            return real(path, *args, **keywords)

        return opened

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("builtins.open", opening(open))
    monkeypatch.setattr(os, "open", opening(os.open))
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    yield watch
    assert not watch.tried


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_no_library_lists_reaches_none(
    name: str,
    libraries: list[tuple[str, dict[str, Any]]],
    sealed_off: SimpleNamespace,
    tmp_path: Path,
) -> None:
    path = tmp_path / "net.safetensors"
    sealed_off.allowed.add(str(path))
    path.write_bytes(spec_file(model={"name": name}))
    with pytest.raises(CheckpointError, match=r"describes no network: \w+"):
        load(path)
    for make in (create_backbone, lambda name: load_plain(name, path)):
        with pytest.raises(ConfigError, match=r"is unknown|makes no model|only its owner's code"):
            make(name)
    assert libraries == []


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("torchvision/resnet18", {"weights": None}),
        ("timm/resnet18", {"pretrained": False, "in_chans": 3}),
        ("timm/resnet18.a1_in1k", {"pretrained": False, "in_chans": 3}),
    ],
)
def test_a_listed_name_is_made_without_weights(
    name: str,
    keywords: dict[str, Any],
    libraries: list[tuple[str, dict[str, Any]]],
    sealed_off: SimpleNamespace,
) -> None:
    assert create_backbone(name, 3, 7).fc.out_features == 7
    assert libraries == [(name.partition("/")[2], {"num_classes": 7, **keywords})]


# -- no more work than the file has bytes ---------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE_CHECKPOINTS)
def test_hostile_checkpoints_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(HOSTILE_CHECKPOINTS[name](random.Random(0), 200_000))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) <= 2000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_names": ["x"] * 10**5}, r"fc.weight has shape \(2, 64\).* \(100000, 64\)"),
        ({"gate": {"width": 60000}}, r"gate.embed.0.weight has shape \(4, 16\).* \(60000, 16\)"),
        ({"gate": {"width": 70000}}, "gate.width: Input should be less than or equal to 65535"),
        ({"model": {"name": "resnet1202"}}, r"does not fit the network: tensors \d+ missing"),
        ({"image": {"size": [100000, 100000]}}, "image.size.0: .* equal to 65535"),
        ({"image": {"size": [4097, 4096]}}, "4097x4096 has more than 16,777,216 pixels"),
        ({"image": {"size": [8, 16], "resize": 4096}}, "4096x8192 has more than 16,777,216 pix"),
        ({"image": {"size": [8, 8], "std": [1e-39, 1, 1]}}, "image.std.0: "),
        ({"image": {"size": [8, 8], "mean": [1e39, 1, 1]}}, "image.mean.0: "),
        ({"model": {"name": "resnet8", "blocks": ["x"] * 4097}}, "at most 4096 items"),
    ],
)
def test_sizes_are_held_against_the_tensors_before_they_are_allocated(
    changes: dict[str, Any], reason: str, checkpoint_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    parts = Parts.of(checkpoint_file.read_bytes())
    parts.plan["meta"]["spec"] |= changes
    for name in ("backbone.fc.weight", "backbone.fc.bias"):  # of two classes
        kind, (_, *rest), data = parts.tensors[name]
        parts.tensors[name] = kind, [2, *rest], data[: len(data) // 3 * 2]
    parts.plan["meta"]["spec"].setdefault("class_names", ["a", "b"])
    if "class_names" not in changes:
        parts.plan["meta"]["spec"]["class_names"] = ["a", "b"]
    path = tmp_path / "net.safetensors"
    path.write_bytes(parts.checkpoint())
    monkeypatch.setattr(checkpoint.networks, "build_network", lambda *_: pytest.fail("it was made"))
    with pytest.raises(CheckpointError, match=reason):
        load(path)


def test_many_faults_are_counted_and_few_are_said(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(spec_file(image={"size": [8, 8], **{f"k{n:02}": 0 for n in range(50)}}))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    said = str(caught.value)
    assert said.endswith("unknown key 'image.k07'; and 42 more")
    path.write_bytes(spec_file(class_names=[0] * 10**5))
    with pytest.raises(CheckpointError, match=r"class_names.0: Input .* \(given: 0\)$"):
        load(path)
    path.write_bytes(spec_file(gate={f"{n}": 0 for n in range(101)}))
    with pytest.raises(CheckpointError, match="101 of its keys and values are wrong, too many to"):
        load(path)


def test_random_damage_with_a_digest_that_fits(checkpoint_file: Path, tmp_path: Path) -> None:
    """A network, or one line: nothing else."""
    sound, path, draw = checkpoint_file.read_bytes(), tmp_path / "net.safetensors", random.Random(1)
    taken, said = 0, []
    for _ in range(25):
        path.write_bytes(damaged_checkpoint(draw, sound))
        try:
            load(path)
            taken += 1
        except FracskipError as error:
            said.append(str(error))
    assert all("\n" not in line and len(line) <= 2000 for line in said)
    assert 0 < taken < 25
    assert load(checkpoint_file).digest  # the file itself is as it was


def test_a_checkpoint_taken_apart_and_put_together_is_the_same(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    parts = Parts.of(checkpoint_file.read_bytes())
    (tmp_path / "x").write_bytes(sealed_checkpoint(parts.plan, parts.tensors))
    assert load(tmp_path / "x").digest == load(checkpoint_file).digest


# -- outlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_channels", [1, 3])
def test_an_outline_has_the_shapes_of_the_network(in_channels: int) -> None:
    with without_memory():
        shapes = create_model("resnet14", in_channels, 7)
    real = create_model("resnet14", in_channels, 7)
    assert all(value.is_meta for value in shapes.parameters())
    found = {name: (value.shape, value.dtype) for name, value in shapes.state_dict().items()}
    assert found == {name: (v.shape, v.dtype) for name, v in real.state_dict().items()}
    assert not any(value.is_meta for value in create_model("resnet8").parameters())


def test_within_an_outline_numbers_have_values() -> None:
    with without_memory():
        assert torch.arange(3).tolist() == [0, 1, 2]
        assert torch.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
        assert torch.tensor([2.5]).item() == 2.5
        assert torch.zeros(10**12).is_meta
