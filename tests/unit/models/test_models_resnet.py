from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fracskip.errors import ConfigError
from fracskip.models import create_model, list_models, tracing
from fracskip.models.layers import as_made
from fracskip.models.resnet import BasicBlock, CifarResNet

BACKBONE = Path(__file__).parents[3] / "models" / "resnet38_cifar10.safetensors"

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str) -> list[str]:
    return [f"{name}.{part}" for part in NORM]


RESNET8 = [
    "conv1.weight",
    *norm("bn1"),
    "layer1.0.conv1.weight",
    *norm("layer1.0.bn1"),
    "layer1.0.conv2.weight",
    *norm("layer1.0.bn2"),
    "layer2.0.conv1.weight",
    *norm("layer2.0.bn1"),
    "layer2.0.conv2.weight",
    *norm("layer2.0.bn2"),
    "layer2.0.downsample.0.weight",
    *norm("layer2.0.downsample.1"),
    "layer3.0.conv1.weight",
    *norm("layer3.0.bn1"),
    "layer3.0.conv2.weight",
    *norm("layer3.0.bn2"),
    "layer3.0.downsample.0.weight",
    *norm("layer3.0.downsample.1"),
    "fc.weight",
    "fc.bias",
]


def test_parameter_names_are_torchvisions() -> None:
    assert list(create_model("resnet8").state_dict()) == RESNET8


@pytest.mark.parametrize("name", list_models())
def test_every_listed_name_makes_a_model(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    depth = int(name.removeprefix("resnet"))
    layers = [
        module
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in path
    ]
    assert len(layers) == depth  # the shortcuts' projections are not counted
    assert len(net.named_blocks()) == (depth - 2) // 2


@pytest.mark.parametrize("depth", [26, 50, 1202])
def test_other_depths_of_the_family_are_taken(depth: int) -> None:
    with torch.device("meta"):
        assert len(create_model(f"resnet{depth}").named_blocks()) == (depth - 2) // 2


@pytest.mark.parametrize(
    "name",
    [
        "resnet",
        "resnet2",
        "resnet18",
        "resnet9",
        "resnet39",
        "resnet1208",
        "resnet99998",
        "resnet-8",
        "resnet8 ",
        " resnet8",
        "Resnet8",
        "wideresnet8",
        "resnet8x",
        "",
    ],
)
def test_another_name_or_depth_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is unknown: use resnetD with D = 6n \+ 2") as caught:
        create_model(name)
    assert repr(name) in str(caught.value)
    assert "resnet38" in str(caught.value)


def test_the_bundled_backbone_loads_strictly() -> None:
    net = create_model("resnet38")
    state = load_file(BACKBONE)
    net.load_state_dict(state, strict=True)
    loaded = net.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    logits = net.eval()(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "size", "classes"),
    [(1, (32, 32), 10), (3, (8, 8), 2), (3, (9, 14), 1), (1, (28, 28), 100)],
)
def test_other_images_and_classes(channels: int, size: tuple[int, int], classes: int) -> None:
    net = create_model("resnet8", channels, classes).eval()
    assert net(torch.randn(2, channels, *size)).shape == (2, classes)
    assert net.conv1.weight.shape == (16, channels, 3, 3)


@pytest.fixture
def trained() -> CifarResNet:
    torch.manual_seed(3)
    net = create_model("resnet8", num_classes=4)
    net(torch.randn(8, 3, 8, 8))  # moves the running statistics
    return net.eval()


def test_a_network_is_its_stem_its_blocks_and_its_head(trained: CifarResNet) -> None:
    images = torch.randn(2, 3, 8, 8)
    x = trained.stem(images)
    assert x.shape == (2, 16, 8, 8)
    assert (x >= 0).all()
    sizes = []
    for _, block in trained.named_blocks():
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
        assert (x >= 0).all()
    assert sizes == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert torch.equal(trained.head(x), trained(images))
    assert torch.equal(trained.head(x), trained.fc(x.mean((2, 3))))


def test_a_block_is_its_shortcut_plus_its_residual(trained: CifarResNet) -> None:
    x = torch.rand(2, 16, 8, 8)
    for name, block in trained.named_blocks()[:2]:
        inner = F.relu(block.bn1(block.conv1(x)))
        residual = block.bn2(block.conv2(inner))
        shortcut = x if name == "layer1.0" else block.downsample(x)
        assert torch.equal(block.residual(x), residual)
        assert torch.equal(block.shortcut(x), shortcut)
        assert torch.equal(block(x), F.relu(residual + shortcut))


def test_a_projection_stands_only_where_the_shape_changes() -> None:
    assert BasicBlock(16, 16, 1).downsample is None
    assert BasicBlock(16, 32, 1).downsample is not None
    assert BasicBlock(16, 16, 2).downsample is not None
    net = create_model("resnet20")
    projected = [name for name, block in net.named_blocks() if block.downsample is not None]
    assert projected == ["layer2.0", "layer3.0"]


def test_a_branch_names_its_convolutions_and_norms() -> None:
    block = BasicBlock(16, 32, 2)
    for conv, bn in block.branch:
        assert isinstance(getattr(block, conv), nn.Conv2d)
        assert isinstance(getattr(block, bn), nn.BatchNorm2d)
        assert getattr(block, conv).out_channels == getattr(block, bn).num_features


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 28, 28), (3, 33, 40)])
def test_a_stated_graph_is_the_one_that_exporting_finds(
    image: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = create_model("resnet14", image[0], 7).eval()
    stated = tracing.trace(net, image)
    monkeypatch.setattr(tracing, "as_made", lambda _: False)
    found = tracing.trace(net, image)
    assert [dataclasses.asdict(node) for node in stated.nodes] == [
        dataclasses.asdict(node) for node in found.nodes
    ]
    assert (stated.output, stated.replaced) == (found.output, found.replaced)


def test_what_is_not_as_its_class_makes_it_is_exported() -> None:
    def changes(net: nn.Module) -> Iterator[None]:
        """One change after the other, each taken back."""
        hook = net.get_submodule("layer1.0.conv1").register_forward_hook(lambda *_: None)
        yield
        hook.remove()
        net.fc.forward = lambda x: 2 * nn.functional.linear(x, net.fc.weight, net.fc.bias)
        yield
        del net.fc.forward
        norm, net.bn1 = net.bn1, nn.Identity()
        yield
        net.bn1 = norm
        net.conv1.dilation = (2, 2)
        yield

    net = create_model("resnet8").eval()
    for _ in changes(net):
        stated = net.stated_graph((3, 32, 32)) if as_made(net) else None
        assert stated is None
