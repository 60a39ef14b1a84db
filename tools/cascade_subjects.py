"""The networks and images of tools/bench_cascade.py."""

from __future__ import annotations

import itertools
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

import fracskip
from fracskip.bench.contender import Contender
from fracskip.bench.openvino_engine import ov_float
from fracskip.bench.subject import CALIBRATION_IMAGES, Images, Plain, evenly, load_plain
from fracskip.checkpoint import load as load_checkpoint
from fracskip.config import ImageConfig
from fracskip.data import ImageSet, load_split, split_validation
from fracskip.deployment.bundle import bundle_in_memory
from fracskip.deployment.onnx import static_onnx
from fracskip.runtime.bundle import Bundle, read_bundle
from fracskip.runtime.session import InferenceSession

DEPTHS = (8, 14, 20, 38, 74)
LITE_NUMBERS, LITE_SIZES = (0, 1, 2), (128, 160, 192, 224, 260)
# ImageNet's numbers of the photographs' classes.
PHOTO_CLASSES = {"tench": 0, "english_springer": 217, "cassette_player": 482, "chain_saw": 491,
                 "church": 497}  # fmt: skip


@dataclass(frozen=True)
class Static:
    """A plain network at an image size.

    Attributes:
        name: Unique.
        plain: In full precision.
        images: Test images of its size, and training images to calibrate on.
        class_names: Of its logits.
        bundle: The network at 8 bits, where it was quantised before.
    """

    name: str
    plain: Plain
    images: Images
    class_names: tuple[str, ...]
    bundle: Bundle | None = None

    def quantised(self) -> Bundle:
        """At 8 bits, as `fracskip.quantize` makes it, as a bundle."""
        if self.bundle is not None:
            return self.bundle
        net = fracskip.quantize(
            self.plain.net,
            self.images.calibration_pixels,
            image=self.images.image,
            class_names=self.class_names,
            name=self.name,
        )
        return bundle_in_memory(net)

    def float_contender(self) -> Contender:
        """At full precision, to hold OpenVINO's int8 against."""
        return ov_float(self.plain, self.images, precision="fp32", threads=1, cores=1)


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


def in_random_order(data: ImageSet) -> ImageSet:
    """The same images: halves of them are then two random ones."""
    return data.subset(np.argsort(np.random.PCG64(7).random_raw(len(data)), kind="stable"))


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
    test = in_random_order(test)
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
    cascades = {"14-20-38": ("resnet14", "resnet20", "resnet38")}

    def reach(session: InferenceSession) -> tuple[float, float]:
        """From ResNet-14's time on; the last member's is ResNet-38's or so."""
        times = session.times.mean_us
        return 1.05 * times[0], 1.05 * times[2]

    return Experiment(test, None, statics, ("resnet14", "resnet20", "resnet38"), cascades, reach)


class _Sized:
    """Photographs by size, decoded once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[ImageConfig, Images] = {}

    def images(self, image: ImageConfig) -> Images:
        if image not in self._known:
            train, test = (self._labelled(split, image) for split in ("train", "test"))
            test = in_random_order(test)
            chosen = evenly(CALIBRATION_IMAGES, len(train))
            self._known[image] = Images(test, image, train.images[chosen])
        return self._known[image]

    def _labelled(self, split: str, image: ImageConfig) -> ImageSet:
        """With ImageNet's labels."""
        found = load_split(f"folder:{self._folder}", split, image)
        numbers = np.array([PHOTO_CLASSES[name] for name in found.class_names])
        return ImageSet(
            found.images, numbers[found.labels], tuple(map(str, range(1000))),
            "photos5", found.split, found.source,
        )  # fmt: skip


@dataclass(frozen=True)
class BundlePlain(Plain):
    """A plain network that is there as a static bundle in full precision."""

    bundle: Bundle = field(kw_only=True)

    def onnx(self, batch: int | str) -> onnx.ModelProto:
        """See `Plain.onnx`."""
        return static_onnx(self.bundle.plan, self.bundle.tensors, batch)


def _photos(lite: Path, photos: Path) -> Experiment:
    if photos.suffix == ".tar":
        folder = lite / "photos5"
        if not folder.exists():
            with tarfile.open(photos) as tar:
                tar.extractall(folder, filter="data")
        photos = folder
    sized = _Sized(photos)
    names = tuple(map(str, range(1000)))
    statics = []
    for number, size in itertools.product(LITE_NUMBERS, LITE_SIZES):
        name = f"lite{number}-{size}"
        if not (lite / f"{name}.fsk").exists():
            print(f"{name} was not quantised: left out", file=sys.stderr)
            continue
        full = read_bundle(lite / f"{name}.full.fsk")
        images = sized.images(full.plan.image)
        plain = BundlePlain(name, "efficientnet-lite", full.digest, None, images.image, bundle=full)  # type: ignore[arg-type]
        statics.append(Static(name, plain, images, names, read_bundle(lite / f"{name}.fsk")))
    # Along the line between the static points at 8 bits, and its last two members.
    cascades = {
        "lite0-160 lite1-192 lite2-224": ("lite0-160", "lite1-192", "lite2-224"),
        "lite1-192 lite2-224": ("lite1-192", "lite2-224"),
    }
    peers = ("lite0-160", "lite0-192", "lite1-192", "lite1-224", "lite2-224")
    test = next(static.images.test for static in statics if static.name == "lite2-224")
    return Experiment(test, None, statics, peers, cascades, _from_second)
