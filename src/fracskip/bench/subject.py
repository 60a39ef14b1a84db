"""What is benchmarked: a dynamic network's bundle, plain networks for the peers, images.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fracskip.checkpoint import load, load_backbone, resolve
from fracskip.config import ImageConfig
from fracskip.data import DATASETS, ImageSet, load_split
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import CheckpointError, ConfigError, DataError
from fracskip.files import require_regular_file
from fracskip.models import create_backbone, create_model

if TYPE_CHECKING:
    import onnx

CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class Plain:
    """A static network at full precision, for the peers to run.

    Attributes:
        name: Its model, such as 'resnet38'.
        source: Where its weights come from, in words.
        digest: Of the file with its weights.
        net: The network, in evaluation mode.
        image: Its images.
    """

    name: str
    source: str
    digest: str
    net: nn.Module
    image: ImageConfig

    def onnx(self, batch: int | str) -> onnx.ModelProto:
        """The network as an ONNX model, for the engines that read those.

        Args:
            batch: Images a run, or a name to leave that open.
        """
        from fracskip.deployment.onnx import backbone_onnx

        return backbone_onnx(self.net, self.image, batch)


@dataclass(frozen=True)
class Images:
    """The images that everything is measured on, and those that peers are calibrated on.

    Attributes:
        test: Pixels and labels.
        image: Size and normalisation.
        calibration_pixels: uint8 (K, H, W, C) from the training split.
    """

    test: ImageSet
    image: ImageConfig
    calibration_pixels: NDArray[np.uint8]

    @cached_property
    def floats(self) -> NDArray[np.float32]:
        """The test images, normalised: (N, C, H, W), C-contiguous."""
        return normalised(self.test.images, self.image)

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        """The calibration images, normalised: (K, C, H, W), C-contiguous."""
        return normalised(self.calibration_pixels, self.image)

    @cached_property
    def singles(self) -> list[NDArray[np.float32]]:
        """Each test image as a batch of one: (1, C, H, W)."""
        return [self.floats[row : row + 1] for row in range(len(self.floats))]


def normalised(pixels: NDArray[np.uint8], image: ImageConfig) -> NDArray[np.float32]:
    """Preprocessed images in plain NCHW memory, which is what other engines take."""
    return np.ascontiguousarray(preprocess(pixels, image).numpy())


def evenly(count: int, of: int) -> NDArray[np.int64]:
    """Indices of `count` evenly spaced out of `of`: sets sorted by class keep their classes."""
    return np.linspace(0, of - 1, min(count, of)).round().astype(np.int64)


def data_key(name: str) -> str:
    """The name by which a data set is loaded; a network may know it by its title.

    >>> data_key("CIFAR-10"), data_key("folder:pictures")
    ('cifar10', 'folder:pictures')
    """

    def plain(text: str) -> str:
        return re.sub(r"\(.*\)|\W", "", text.lower())

    return next((key for key in DATASETS if plain(key) == plain(name)), name)


def load_images(
    name: str,
    image: ImageConfig,
    class_names: tuple[str, ...],
    count: int,
    own_data: str,
    *,
    named: bool = True,
) -> Images:
    """Test images by name, and training images to calibrate on.

    Args:
        name: As `fracskip.data.load_split` takes it.
        image: What the network takes.
        class_names: The network's classes.
        count: At most so many test images.
        own_data: The data set that the network was trained on, for calibration where `name` has
            no training split.
        named: Whether the names are the classes' own: of a plain network only their number is
            known.

    Raises:
        DataError: if there are no such images, or they are of other classes.
    """
    test = load_split(name, "test", image)
    fits = test.class_names == class_names or (
        not named and len(test.class_names) == len(class_names)
    )
    if not fits:
        raise DataError(
            f"{name} has other classes than the network: give the data set that it was trained "
            f"for ({own_data})"
        )
    train = load_split(own_data if name == "sample" else name, "train", image)
    return Images(
        test.subset(evenly(count, len(test))),
        image,
        train.images[evenly(CALIBRATION_IMAGES, len(train))],
    )


def plain_of(net: DynamicNetwork) -> Plain:
    """The plain network whose weights are a dynamic network's own at full precision.

    Raises:
        ConfigError: if parts of it have never run at full precision.
    """
    advice = "for the other engines to run: give its backbone with --backbone FILE"
    if net.spec.quant.stream == "int8":
        raise ConfigError(
            "a network with an int8 stream runs its first block and projections at 8 bits only, so "
            f"it has no plain network within {advice}"
        )
    if not net.options[net.options.top].is_full:
        raise ConfigError(
            f"a network with the options {', '.join(net.options.labels)} has no weights at full "
            f"precision {advice}"
        )
    spec = net.spec
    source = "the dynamic network's own weights at full precision"
    return Plain(spec.model.name, source, net.digest, _own_code(net).eval(), spec.image)


def _own_code(net: DynamicNetwork) -> nn.Module:
    """Its plain network as people run it: by its own code, which is quicker than its graph."""
    plain, spec = net.plain(), net.spec
    if spec.model.name.startswith("module/") or net.sections.structure.graph.replaced:
        return plain
    own = create_backbone(spec.model.name, spec.image.channels, len(spec.class_names))
    own.load_state_dict(plain.state_dict())
    return own


def load_plain(path: str | Path, image: ImageConfig, class_names: tuple[str, ...]) -> Plain:
    """A plain network from a file: weights alone, or a checkpoint that executes in full.

    Args:
        path: A safetensors file.
        image: What its images are like, where the file says nothing of it.
        class_names: Its classes; a checkpoint must have the same.

    Raises:
        CheckpointError: if the file holds no such network.
    """
    path = Path(path)
    require_regular_file(resolve(path), "backbone")
    try:
        with safe_open(resolve(path), framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"backbone {path} does not exist; give a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no sound safetensors file ({error})") from None
    if "fracskip" in metadata:
        whole = load(path)
        if whole.spec.class_names != class_names or whole.spec.image.size != image.size:
            raise CheckpointError(f"{path} is of other images or classes than the network")
        return plain_of(whole)
    net, name = _empty_like(path, shapes, image, class_names)
    digest = load_backbone(path, net)
    return Plain(name, f"the file {path.name}", digest, net.eval(), image)


def _empty_like(
    path: Path, shapes: dict[str, Any], image: ImageConfig, class_names: tuple[str, ...]
) -> tuple[nn.Module, str]:
    """A network of the depth that a file's tensors are of."""
    blocks = {match[1] for name in shapes if (match := re.match(r"layer1\.(\d+)\.", name))}
    classes = shapes.get("fc.bias", (0,))
    if not blocks or classes != (len(class_names),):
        raise CheckpointError(
            f"{path} holds no CIFAR ResNet with {len(class_names)} classes; give a backbone's "
            "weights with torchvision's names"
        )
    name = f"resnet{6 * len(blocks) + 2}"
    return create_model(name, image.channels, len(class_names)), name


def tensors_of(images: NDArray[np.float32]) -> list[Tensor]:
    """Each image as a batch of one in channels-last memory, which torch's convolutions prefer."""
    whole = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return [whole[row : row + 1] for row in range(len(whole))]
