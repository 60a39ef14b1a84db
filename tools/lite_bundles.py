"""EfficientNet-Lite 0, 1 and 2 at several sizes as bundles: int8 after training, and in full.

    python tools/lite_bundles.py build/lite --photos folder-of-photographs

Weights are those of tools/lite_networks.py; 256 training images calibrate. Needs a torch that timm
imports with (`make zoo` has one). tools/bench_cascade.py times and compares the bundles.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import timm
from safetensors.torch import load_file

import fracskip
from fracskip.config import ImageConfig
from fracskip.data import load_split

NUMBERS, SIZES = (0, 1, 2), (128, 160, 192, 224, 260)
CALIBRATION_IMAGES = 256


def lite_image(size: int) -> ImageConfig:
    """As these networks' preprocessing is: mean and deviation 0.5, the centre of 1 / 0.875."""
    half = (0.5, 0.5, 0.5)
    return ImageConfig(size=(size, size), resize=round(size / 0.875), mean=half, std=half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds NETWORK.safetensors, gets the bundles")
    parser.add_argument("--photos", required=True, help="folder with train/CLASS and val/CLASS")
    options = parser.parse_args()
    names = tuple(map(str, range(1000)))
    for size in SIZES:
        image = lite_image(size)
        train = load_split(f"folder:{options.photos}", "train", image).images
        chosen = np.linspace(0, len(train) - 1, CALIBRATION_IMAGES).round().astype(int)
        for number in NUMBERS:
            path = options.folder / f"lite{number}-{size}.fsk"
            if path.exists():
                continue
            network = f"tf_efficientnet_lite{number}"
            module = timm.create_model(network)
            module.load_state_dict(
                load_file(options.folder / f"{network}.safetensors"), strict=False
            )
            module.eval()
            begin = time.perf_counter()
            full = fracskip.convert(
                module, ["full"], image=image, class_names=names, name=f"lite{number}-{size}"
            )
            fracskip.export(full, path.with_suffix(".full.fsk"))
            net = fracskip.quantize(
                module, train[chosen], image=image, class_names=names, name=f"lite{number}-{size}"
            )
            fracskip.export(net, path)
            print(f"{path}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
