"""Growing a trained backbone: the same function, more blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fracskip.checkpoint import load_backbone
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_model
from fracskip.models.resnet import CifarResNet, deepen


def trained(name: str = "resnet14", classes: int = 4) -> CifarResNet:
    """Uneven norms and statistics, so that nothing is the identity by accident."""
    torch.manual_seed(1)
    net = create_model(name, 3, classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", ["resnet14", "resnet20", "resnet26"])
def test_the_deeper_network_computes_the_same(name: str) -> None:
    net = trained()
    deeper = deepen(net, create_model(name, 3, 4)).eval()
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(deeper(images), net(images))


def test_trained_blocks_keep_their_order_and_new_ones_stand_between() -> None:
    net = trained()
    deeper = deepen(net, create_model("resnet26", 3, 4))
    for stage in ("layer1", "layer2", "layer3"):
        for place in range(4):
            norm = deeper.get_submodule(f"{stage}.{place}.bn2")
            assert isinstance(norm, nn.BatchNorm2d)
            if place % 2:
                assert not norm.weight.any()
                assert not norm.bias.any()
            else:
                source = net.get_submodule(f"{stage}.{place // 2}").state_dict()
                own = deeper.get_submodule(f"{stage}.{place}").state_dict()
                assert all(torch.equal(own[key], source[key]) for key in source)


def test_new_blocks_have_a_gradient_from_the_first_step() -> None:
    deeper = deepen(trained(), create_model("resnet26", 3, 4)).train()
    logits = deeper(torch.randn(6, 3, 16, 16))
    nn.functional.cross_entropy(logits, torch.arange(6) % 4).backward()
    norm = deeper.get_submodule("layer2.1.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.weight.grad is not None
    assert norm.weight.grad.any()


@pytest.mark.parametrize(
    ("target", "classes", "words"),
    [("resnet8", 4, "layer1: 1 blocks cannot hold 2"), ("resnet26", 5, "fc has another shape")],
)
def test_a_target_that_does_not_fit_is_refused(target: str, classes: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deepen(trained(), create_model(target, 3, classes))


# -- a static network as a backbone ---------------------------------------------------------------


def save_static(path: Path, options: Sequence[str]) -> CifarResNet:
    from fracskip import checkpoint
    from fracskip.config import ModelSpec
    from fracskip.dynamic import DynamicNetwork

    spec = ModelSpec.model_validate(
        {
            "model": {"name": "resnet14"},
            "options": options,
            "quant": {},
            "gate": {},
            "image": {"size": [8, 8]},
            "class_names": list("abcd"),
            "data_name": "random",
        }
    )
    net = trained()
    plain = trained()
    checkpoint.save(DynamicNetwork(net, spec), path)
    return plain


def test_a_static_checkpoint_is_a_backbone(tmp_path: Path) -> None:
    plain = save_static(tmp_path / "static.safetensors", ["full"])
    net = create_model("resnet14", 3, 4)
    load_backbone(tmp_path / "static.safetensors", net)
    own, wanted = net.state_dict(), plain.state_dict()
    assert all(torch.equal(own[key], wanted[key]) for key in wanted)


def test_a_dynamic_checkpoint_is_none(tmp_path: Path) -> None:
    save_static(tmp_path / "dynamic.safetensors", ["skip", "full"])
    with pytest.raises(CheckpointError, match="is a dynamic network"):
        load_backbone(tmp_path / "dynamic.safetensors", create_model("resnet14", 3, 4))


def test_the_tool_writes_weights_that_load(tmp_path: Path) -> None:
    import subprocess
    import sys

    tool = Path(__file__).parents[3] / "tools" / "deepen.py"
    save_file(trained().state_dict(), tmp_path / "small.safetensors")
    command = [sys.executable, str(tool), "small.safetensors", "resnet14", "big.safetensors"]
    subprocess.run([*command, "resnet26"], cwd=tmp_path, check=True)
    net = create_model("resnet26", 3, 4)
    load_backbone(tmp_path / "big.safetensors", net)
    assert len(load_file(tmp_path / "big.safetensors")) == len(net.state_dict())
    failed = subprocess.run(
        [*command, "resnet8"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("deepen: layer1")
