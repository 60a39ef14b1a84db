"""Post-training quantisation of networks of torchvision and timm: all of it integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.residual_networks import settled
from torch import Tensor, nn

import fracskip
from fracskip.checkpoint import plain_image
from fracskip.models import create_backbone
from fracskip.quant.convolution import FractionalLayer


def photographs(count: int, seed: int = 0) -> Tensor:
    """Smooth pictures, uint8 (count, 64, 64, 3)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    fine = nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    return (255 * fine).byte().permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def noisy(net: nn.Module, images: Tensor, share: float) -> Tensor:
    """Logits while the output of each norm has noise of that share of its standard deviation."""
    draw = torch.Generator().manual_seed(0)

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output + share * output.std() * torch.randn(output.shape, generator=draw)

    hooks = [
        module.register_forward_hook(add)
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    logits: Tensor = net(images)
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize(
    "name",
    [
        "timm/tf_efficientnet_lite0",
        "timm/mobilenetv1_100",
        "torchvision/resnet18",
        "torchvision/mobilenet_v3_large",
        "torchvision/regnet_y_400mf",
    ],
)
@torch.no_grad()
def test_every_layer_becomes_integers(name: str, tmp_path: Path) -> None:
    """Logits are off by no more than noise of 4% in each layer makes them.

    Deep networks with random weights amplify any noise, so that no bound of its own would do.
    """
    torch.manual_seed(0)
    image = plain_image(name, (64, 64))
    plain = settled(
        create_backbone(name, num_classes=10), fracskip.preprocess(photographs(32), image)
    )
    net = fracskip.quantize(plain, photographs(24), name=name)
    assert net.spec.image == image
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, FractionalLayer) for layer in layers)
    images = fracskip.preprocess(photographs(16, seed=1), image)
    wanted = plain(images)
    error = (net(images).logits - wanted).square().sum()
    assert error < (noisy(plain, images, 0.04) - wanted).square().sum()
    fracskip.export(net, tmp_path / "net.fsk")
    session = fracskip.InferenceSession(tmp_path / "net.fsk")
    assert not [k for _, _, kernels in session.kernels() for k in kernels if "float" in k]


def test_images_are_normalised_as_timm_says() -> None:
    lite, usual = plain_image("timm/tf_efficientnet_lite0"), plain_image("timm/resnet18")
    assert (lite.mean, lite.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (usual.mean, usual.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
