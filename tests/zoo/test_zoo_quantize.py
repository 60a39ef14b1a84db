"""Post-training quantisation of networks of torchvision and timm: all of it integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fracskip
from fracskip.checkpoint import plain_image
from fracskip.models import create_backbone
from fracskip.quant.convolution import FractionalLayer


def photographs(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, uint8 (count, 64, 64, 3)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    fine = nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    return (255 * fine).byte().permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(
    "name",
    [
        "timm/tf_efficientnet_lite0",
        "timm/mobilenetv1_100",
        "torchvision/mobilenet_v3_large",
        "torchvision/regnet_y_400mf",
    ],
)
@torch.no_grad()
def test_every_layer_becomes_integers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, image = create_backbone(name, num_classes=10), plain_image(name, (64, 64))
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch
    plain.train()(fracskip.preprocess(photographs(32), image))
    net = fracskip.quantize(plain.eval(), photographs(24), name=name)
    assert net.spec.image == image
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, FractionalLayer) for layer in layers)
    images = fracskip.preprocess(photographs(16, seed=1), image)
    wanted = plain(images)
    noise = (net(images).logits - wanted).square().sum()
    assert (wanted - wanted.mean(0)).square().sum() > 10 * noise
    fracskip.export(net, tmp_path / "net.fsk")
    session = fracskip.InferenceSession(tmp_path / "net.fsk")
    assert not [k for _, _, kernels in session.kernels() for k in kernels if "float" in k]


def test_images_are_normalised_as_timm_says() -> None:
    lite, usual = plain_image("timm/tf_efficientnet_lite0"), plain_image("timm/resnet18")
    assert (lite.mean, lite.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (usual.mean, usual.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
