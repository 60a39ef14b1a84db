"""Makes the bundled cascade: ResNet-20, then ResNet-38, quantised after training.

    python tools/make_cascade.py

256 training images calibrate. Thresholds are chosen on the 9,000 CIFAR-10 test images that are not
in the bundled sample, so that what the demo says of the sample holds for other images.
"""

from __future__ import annotations

import numpy as np

import fracskip
from fracskip.bench.subject import evenly, load_plain
from fracskip.data import load_sample, load_split
from fracskip.runtime.bundle import BUNDLED, resolve

DEPTHS = (20, 38)
CALIBRATION_IMAGES = 256
NAME = "cascade-cifar10"


def main() -> None:
    image = fracskip.InferenceSession("bundled").image
    train, test = (load_split("cifar10", split, image) for split in ("train", "test"))
    known = {pixels.tobytes() for pixels in load_sample().images}
    others = [row for row, pixels in enumerate(test.images) if pixels.tobytes() not in known]
    assert len(others) == len(test) - len(known)
    calibration = train.images[evenly(CALIBRATION_IMAGES, len(train))]
    networks = []
    for depth in DEPTHS:
        path = f"models/resnet{depth}_cifar10.safetensors"
        plain = load_plain(path, image, test.class_names)
        networks.append(
            fracskip.quantize(
                plain.net,
                calibration,
                image=image,
                class_names=test.class_names,
                name=f"resnet{depth}",
            )
        )
    net = fracskip.cascade(networks, test.subset(np.array(others)))
    fracskip.save(net, resolve(NAME))
    print(f"{BUNDLED[NAME]}: {net}, {net.digest}")


if __name__ == "__main__":
    main()
