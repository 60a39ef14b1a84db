"""Static networks of torchvision and timm as bundles, to be timed by tools/bench_static.py.

Of each network one at 8 bits and one at 4, quantised after training, and one in full, of which
other engines get their models. Weights are random, with norms that hold the statistics of what they
see: times do not depend on them, and accuracy is not measured.

    python tools/static_bundles.py build/static

Needs a torch that torchvision and timm import with (`make zoo` has one).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from imagenet_bundles import settled

import fracskip
from fracskip.config import IMAGENET_MEAN, IMAGENET_STD, ImageConfig
from fracskip.models import create_backbone

NETWORKS = (
    "torchvision/resnet50",
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/regnet_y_400mf",
    "timm/tf_efficientnet_lite0",
    "timm/tf_efficientnet_lite2",
)
BITS = (8, 4)
SIZE = (224, 224)
IMAGES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *SIZE, 3), dtype=np.uint8)
    image = ImageConfig(size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = fracskip.preprocess(torch.from_numpy(pixels), image)
    for name in NETWORKS:
        torch.manual_seed(0)
        plain = settled(create_backbone(name, 3, 1000), images)
        short = name.split("/")[1]
        full = fracskip.convert(plain, ("full",), example_input=images[:1], name=name)
        fracskip.export(full, folder / f"{short}.full.fsk")
        for bits in BITS:
            net = fracskip.quantize(plain, pixels, options=(bits,), image=image, name=name)
            fracskip.export(net, folder / f"{short}.{bits}bits.fsk")
        print(short, flush=True)


if __name__ == "__main__":
    main()
