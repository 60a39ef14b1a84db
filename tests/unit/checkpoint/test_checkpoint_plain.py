"""Plain weights: wrapped names, networks made of a name and a file, tied weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fracskip
from fracskip.checkpoint import load, load_backbone, load_plain, save
from fracskip.config import ImageConfig
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a resnet8 with 4 classes."""
    torch.manual_seed(11)
    net = create_model("resnet8", 3, 4)
    net.train()(torch.randn(4, 3, 8, 8))
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def wrapped(path: Path, prefix: str) -> Path:
    """The same with other names."""
    other = path.with_name("wrapped.safetensors")
    save_file({prefix + name: value for name, value in load_file(path).items()}, other)
    return other


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "state_dict.",
        "model.",
        "model.module.",
        "state_dict.model._orig_mod.",
        "module." * 8,
    ],
)
def test_wrappers_are_left_out_and_named(prefix: str, weights: Path) -> None:
    plain, net, said = create_model("resnet8", 3, 4), create_model("resnet8", 3, 4), []
    load_backbone(weights, plain, on_prefix=said.append)
    assert said == []
    load_backbone(wrapped(weights, prefix), net, on_prefix=said.append)
    assert said == [prefix]
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_without_a_listener_wrappers_are_a_warning(weights: Path) -> None:
    path = wrapped(weights, "module.")
    with pytest.warns(UserWarning, match=r"wrapped.safetensors begins with 'module.', which was l"):
        load_backbone(path, create_model("resnet8", 3, 4))
    with pytest.warns(UserWarning, match="begins with 'module.'") as caught:
        load_plain("resnet8", path)
    assert len(caught) == 1


@pytest.mark.parametrize("prefix", ["net.", "module.x.", "module." * 9, "Module."])
def test_other_prefixes_are_not_guessed(prefix: str, weights: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit the network: tensors"):
        load_backbone(wrapped(weights, prefix), create_model("resnet8", 3, 4))


def test_a_networks_own_names_may_begin_like_a_wrapper(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("model", nn.Linear(2, 3))
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    other = nn.Sequential()
    other.add_module("model", nn.Linear(2, 3))
    load_backbone(tmp_path / "x.safetensors", other)  # a warning would be an error
    assert torch.equal(other.model.weight, net.model.weight)


# -- a network of a name and a file ---------------------------------------------------------------


def test_plain_weights_and_a_name_make_a_static_network(weights: Path) -> None:
    plain = create_model("resnet8", 3, 4)
    digest = load_backbone(weights, plain)
    net = load_plain("resnet8", weights)
    assert (net.options.labels, net.gate, net.training) == (("full",), None, False)
    assert net.spec.class_names == ("0", "1", "2", "3")
    assert net.spec.image == ImageConfig()
    assert net.digest == digest
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(net(images).logits, plain.eval()(images))


def test_a_plain_network_is_saved_and_exported_as_any(weights: Path, tmp_path: Path) -> None:
    image = ImageConfig(size=(8, 12), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    net = load_plain("resnet8", weights, image, ["a", "b", "c", "d"])
    save(net, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert again.spec == net.spec
    assert (again.spec.image, again.spec.class_names) == (image, ("a", "b", "c", "d"))
    fracskip.export(net, tmp_path / "net.fsk")
    session = fracskip.InferenceSession(tmp_path / "net.fsk", engine="portable")
    pixels = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8)
    with torch.inference_mode():
        ours = net(fracskip.preprocess(pixels, image)).logits
    torch.testing.assert_close(torch.from_numpy(session.run(pixels.numpy()).logits), ours)


def test_a_static_checkpoint_is_as_good_as_plain_weights(weights: Path, tmp_path: Path) -> None:
    net = load_plain("resnet8", weights)
    save(net, tmp_path / "net.safetensors")
    again = load_plain("resnet8", tmp_path / "net.safetensors")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "class_names", "error", "message"),
    [
        ("resnet14", None, CheckpointError, r"does not fit the network: tensors \d+ missing"),
        ("resnet9", None, ConfigError, "model 'resnet9' is unknown"),
        ("resnet8", ["a"], ConfigError, "1 class names do not fit the 4 classes of .*: give one"),
    ],
)
def test_what_does_not_fit(
    name: str, class_names: list[str] | None, error: type[Exception], message: str, weights: Path
) -> None:
    with pytest.raises(error, match=message):
        load_plain(name, weights, class_names=class_names)


def test_weights_of_another_network_and_of_none(
    weights: Path, tmp_path: Path, checkpoint_file: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"\(16, 3, 3, 3\), the network needs \(16, 1, 3, 3"):
        load_plain("resnet8", weights, ImageConfig(channels=1, mean=(0.5,), std=(0.5,)))
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="has no classifier of resnet8: give that model's"):
        load_plain("resnet8", tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is a dynamic network; a backbone is plain weights"):
        load_plain("resnet8", checkpoint_file)


def test_plain_weights_where_a_checkpoint_belongs_say_what_works(weights: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"plain safetensors file .*--model NAME --weights FILE.*load_plain"
    ):
        load(weights)


# -- tied weights ---------------------------------------------------------------------------------


class Tied(nn.Module):
    """Blocks, two of which may have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if k == 0 else 8, 8, 3, 1, 1) for k in range(4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = torch.relu(x + layer(x))
        out: torch.Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("packed", [False, True])
def test_tied_weights_are_saved_twice(packed: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    images = torch.randn(2, 3, 16, 16)
    net = fracskip.convert(Tied().eval(), [4, 8], example_input=images, calibration=[images])
    net.backbone.layers[2].weight = net.backbone.layers[1].weight
    save(net, tmp_path / "tied.safetensors", packed=packed)
    tensors = load_file(tmp_path / "tied.safetensors")
    names = ("backbone.layers.1.weight", "backbone.layers.2.weight")
    if not packed:
        assert all(torch.equal(tensors[name], net.state_dict()[name]) for name in names)
    again = load(tmp_path / "tied.safetensors", model=Tied())
    with torch.inference_mode():
        for option in (0, 1):
            path = net.forced(net.options[option], 2)
            ours, theirs = (each(images, decisions=path).logits for each in (net, again))
            assert torch.equal(ours, theirs)
    assert net.backbone.layers[2].weight is net.backbone.layers[1].weight


def test_views_of_one_tensor_are_saved_by_themselves(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    tensors = {"a": whole, "b": whole[:3], "c": whole[3:], "d": whole.view(2, 3).T}
    digest = fracskip.checkpoint.write_package(tmp_path / "x", "s", {}, tensors)
    found = fracskip.checkpoint.read_package(tmp_path / "x", "s")
    assert found.digest == digest
    for name, value in tensors.items():
        assert torch.equal(found.tensors[name], value)
