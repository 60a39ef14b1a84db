"""ResNet-50 and MobileNetV2 of torchvision as bundles, to be timed by tools/bench_imagenet.py.

Weights are random, with norms that hold the statistics of what they see, and gates are untrained:
times do not depend on either, and accuracy is not measured.

    python tools/imagenet_bundles.py build/imagenet

Needs a torch that torchvision imports with (`make zoo` has one).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import fracskip
from fracskip.config import QuantConfig
from fracskip.models import create_backbone
from fracskip.operating import OperatingPoints

NETWORKS = ("resnet50", "mobilenet_v2")
KINDS = {"dynamic": ("skip", 4, 8, "full"), "gates": ("skip", 8), "static": ("full",)}
# Gates decide for 8 bits, whatever they see: what is left is their own time.
MULTIPLIERS = {"gates": -1e6}
# A static network in full has no stream of levels.
QUANT = {kind: QuantConfig(weights="per_option", stream="int8") for kind in ("dynamic", "gates")}
IMAGE = (3, 224, 224)


@torch.no_grad()
def settled(net: nn.Module, images: torch.Tensor) -> nn.Module:
    """Norms take the statistics of one batch."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    net.train()(images)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        torch.manual_seed(0)
        images = torch.randn(8, *IMAGE)
        plain = settled(create_backbone(f"torchvision/{name}", 3, 1000), images)
        for kind, options in KINDS.items():
            net = fracskip.convert(
                plain,
                options,
                quant=QUANT.get(kind),
                example_input=images[:1],
                calibration=[images] if len(options) > 1 else (),
                name=f"torchvision/{name}",
            )
            if net.gate is not None:
                net.gate.round_embeddings()  # as training does
            multiplier = MULTIPLIERS.get(kind, 0.0)
            net.operating_points = OperatingPoints(target=0.05, multiplier=multiplier)
            path = folder / f"{name}.{kind}.fsk"
            fracskip.export(net, path)
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
