import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fracskip import checkpoint
from fracskip.checkpoint.package import read_package, tensor_digest
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import CheckpointError
from fracskip.models import create_model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"options": ["full"], "target": None},
        {"gate": {"kind": "feedforward", "width": 4}},
        {"gate": {"budget_input": True}},
        {"quant": {"scheme": "paper"}},
        {"image": {"size": [8, 12], "channels": 1, "mean": [0.3], "std": [0.4]}},
        {"class_names": ["é", "only in Ω"]},
    ],
)
def test_a_loaded_network_is_the_saved_one(
    make_net: Callable[..., DynamicNetwork], changes: dict[str, object], tmp_path: Path
) -> None:
    net = make_net(**changes)
    digest = checkpoint.save(net, tmp_path / "net.safetensors", notes={"by": "me", "steps": 3})
    loaded = checkpoint.load(tmp_path / "net.safetensors")

    assert loaded.spec == net.spec
    assert (loaded.digest, loaded.notes) == (digest, {"by": "me", "steps": 3})
    assert not loaded.training
    for name, value in net.state_dict().items():
        torch.testing.assert_close(
            loaded.state_dict()[name], value, rtol=0, atol=0, equal_nan=True, msg=name
        )
    images = torch.randn(5, net.spec.image.channels, *net.spec.image.size)
    with torch.inference_mode():
        before, after = net(images), loaded(images)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.decisions, after.decisions)


def test_the_digest_follows_the_content_alone(net: DynamicNetwork, tmp_path: Path) -> None:
    first = checkpoint.save(net, tmp_path / "a.safetensors", notes={"n": 1})
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first)
    assert checkpoint.save(net, tmp_path / "b.safetensors", notes={"n": 1}) == first
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    # Of the tensors, that is; the file's own digest is over its metadata too.
    net.operating_points = net.operating_points.changed(multiplier=2.0)
    assert checkpoint.save(net, tmp_path / "c.safetensors", notes={"n": 2}) == first
    files = [read_package(tmp_path / f"{name}.safetensors", checkpoint.SCHEMA) for name in "abc"]
    assert files[0].digest == files[1].digest != files[2].digest
    with torch.no_grad():
        net.backbone.fc.bias[0] = torch.nextafter(net.backbone.fc.bias[0], torch.tensor(9.0))
    assert checkpoint.save(net, tmp_path / "d.safetensors", notes={"n": 1}) != first


def test_the_digest_does_not_depend_on_the_memory_layout(
    net: DynamicNetwork, tmp_path: Path
) -> None:
    digest = checkpoint.save(net, tmp_path / "a.safetensors")
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert checkpoint.save(net, tmp_path / "b.safetensors") == digest


def test_the_digest_of_a_known_file(tmp_path: Path) -> None:
    """Hand-computed: SHA-256 of the canonical metadata, then of each tensor in order of name."""
    import hashlib

    head = b'{"meta": {"x": 1}, "schema": "s", "version": 2}'
    body = b"\na torch.uint8 (2,)\n\x07\x08" + b"\nb torch.float32 ()\n\x00\x00\x80\x3f"
    expected = f"sha256:{hashlib.sha256(head + body).hexdigest()}"
    tensors = {"b": torch.tensor(1.0), "a": torch.tensor([7, 8], dtype=torch.uint8)}
    assert checkpoint.write_package(tmp_path / "p", "s", {"x": 1}, tensors) == expected
    assert checkpoint.read_package(tmp_path / "p", "s").digest == expected
    alone = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert tensor_digest(tensors) == alone


def test_the_file_is_plain_safetensors_with_json_metadata(checkpoint_file: Path) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint_file, "pt") as file:
        head = json.loads(file.metadata()["fracskip"])
        assert "backbone.conv1.weight" in file.keys()
    assert set(head) == {"schema", "version", "meta", "digest"}
    assert (head["schema"], head["version"]) == ("fracskip.checkpoint", 2)
    assert set(head["meta"]) == {"spec", "operating_points", "notes"}
    assert head["meta"]["notes"] == {"recipe": "tiny"}
    assert head["meta"]["spec"]["options"] == ["skip", "4", "full"]


def test_saving_does_not_disturb_the_network(net: DynamicNetwork, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    checkpoint.save(net, tmp_path / "deep" / "er" / "net.safetensors")
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["net.safetensors"]


def test_notes_that_are_no_json_are_refused_before_anything_is_written(
    net: DynamicNetwork, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(net, tmp_path / "net.safetensors", notes={"x": object()})
    assert not list(tmp_path.iterdir())


def test_names_and_paths() -> None:
    assert checkpoint.resolve("bundled").name == "dfs_resnet38_cifar10.safetensors"
    assert checkpoint.resolve("bundled").parent.name == "assets"
    assert checkpoint.resolve("./bundled") == Path("bundled")
    assert checkpoint.resolve(Path("runs/x")) == Path("runs/x")


@pytest.mark.parametrize("header_bytes", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_loads(header_bytes: int, tmp_path: Path) -> None:
    """A file begins with its header's length: 640 bytes are written as a pickle's first two."""
    path = tmp_path / "net.safetensors"

    def size(note: str) -> int:
        checkpoint.write_package(path, "s", {"note": note}, {"a": torch.ones(2)})
        return int.from_bytes(path.read_bytes()[:8], "little")

    assert size("x" * (header_bytes - size(""))) == header_bytes
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
    assert checkpoint.read_package(path, "s").tensors["a"].tolist() == [1, 1]


# -- backbones ------------------------------------------------------------------------------------


@pytest.fixture
def backbone(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(11)
    net = create_model("resnet8", 3, 4)
    net.train()(torch.randn(4, 3, 8, 8))  # moves the running statistics and their counter
    path = tmp_path / "backbone.safetensors"
    save_file(net.state_dict(), path)
    return net, path


@pytest.mark.parametrize("counters", [True, False])
def test_a_backbone_loads_with_and_without_step_counters(
    backbone: tuple[nn.Module, Path], counters: bool
) -> None:
    import hashlib

    net, path = backbone
    if not counters:
        kept = {k: v for k, v in load_file(path).items() if not k.endswith("num_batches_tracked")}
        assert len(kept) < len(net.state_dict())
        save_file(kept, path)
    fresh = create_model("resnet8", 3, 4)
    digest = checkpoint.load_backbone(path, fresh)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    for name, value in net.state_dict().items():
        if counters or not name.endswith("num_batches_tracked"):
            assert torch.equal(fresh.state_dict()[name], value), name
    assert int(fresh.state_dict()["bn1.num_batches_tracked"]) == (1 if counters else 0)


def test_a_backbone_of_other_classes_does_not_fit(backbone: tuple[nn.Module, Path]) -> None:
    other = create_model("resnet8", 3, 5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"fc\.weight has shape \(4, 64\), .* needs \(5, 64\)"
    ):
        checkpoint.load_backbone(backbone[1], other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was touched although the file is refused"


def test_a_dynamic_checkpoint_is_no_backbone(checkpoint_file: Path) -> None:
    with pytest.raises(CheckpointError, match="is a dynamic network; a backbone is plain weights"):
        checkpoint.load_backbone(checkpoint_file, create_model("resnet8", 3, 3))
