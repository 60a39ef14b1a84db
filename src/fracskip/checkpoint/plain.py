"""Plain weights: backbones from safetensors files, and static networks in full made of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fracskip.checkpoint.package import SCHEMA, File, unpacked
from fracskip.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    QuantConfig,
)
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.dynamic.state import apply_state, check_state
from fracskip.errors import CheckpointError, ConfigError
from fracskip.models import create_backbone
from fracskip.models.registry import normalisation_of, without_memory
from fracskip.models.weights import classes_in, other_classes, unwrapped

IMAGENET_SIZE = (224, 224)


def load_backbone(
    path: str | Path,
    module: nn.Module,
    on_other_classes: Callable[[str, int, int], None] | None = None,
    on_prefix: Callable[[str], None] | None = None,
) -> str:
    """Loads a plain network. Returns the file's SHA-256.

    Args:
        path: Plain weights with torchvision's parameter names, or a checkpoint of a static network
            in full precision (an option set of 'full' alone), which holds the same. Names may all
            begin with `module.`, `_orig_mod.`, `state_dict.` or `model.`, or several of these.
        module: The network to fill.
        on_other_classes: If given, a file of another number of classes is taken too: the module's
            last linear layer keeps its fresh weights, and this is called with the layer's name and
            the number of classes of the file and of the module.
        on_prefix: Called with what was left out at the beginning of the file's names, if anything
            was; by default that is a warning.

    Raises:
        CheckpointError: if the file is damaged or does not fit.
    """
    own = module.state_dict()
    file = File.read(Path(path))
    tensors = _tensors_for(own, file, on_prefix)
    if on_other_classes is not None and (found := other_classes(module, tensors)):
        on_other_classes(*found)
        layer = found[0]
        tensors.update({name: own[name] for name in own if name.rpartition(".")[0] == layer})
    apply_state(module, tensors, path)
    return _sha256(file)


def plain_image(name: str, size: tuple[int, int] | None = None) -> ImageConfig:
    """What a model usually takes: CIFAR-10's images, or ImageNet's for torchvision's and timm's.

    Images of timm's are normalised as timm says of the model.

    Args:
        name: As `fracskip.models.create_backbone` takes it.
        size: Another height and width.
    """
    if "/" not in name:
        return ImageConfig(size=size or ImageConfig().size)
    normalisation = None
    if name.startswith("timm/"):
        with without_memory():
            normalisation = normalisation_of(create_backbone(name), len(IMAGENET_MEAN))
    mean, std = normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    return ImageConfig(size=size or IMAGENET_SIZE, mean=mean, std=std)


def load_plain(
    name: str,
    weights: str | Path,
    image: ImageConfig | None = None,
    class_names: Sequence[str] | None = None,
    on_prefix: Callable[[str], None] | None = None,
) -> DynamicNetwork:
    """Makes a static network in full precision of a model's name and plain weights.

    It has one option, 'full', and no gate: it evaluates, is timed and is exported as any network
    that fracskip loads, and computes what the plain network does. Nothing is fetched: the weights
    are the file's.

    Args:
        name: As `fracskip.models.create_backbone` takes it: 'resnet38', 'torchvision/resnet18'.
        weights: A safetensors file, as for `load_backbone`. How many classes there are is read off
            the shape of the classifier in it.
        image: Size, channels and normalisation of what the network takes; if not given, see
            `plain_image`.
        class_names: What its logits stand for; numbers from 0 if not given.
        on_prefix: As for `load_backbone`.

    Returns:
        The network in evaluation mode, on the CPU; `net.digest` is the file's SHA-256.

    Raises:
        ConfigError: if the name is unknown, the model has no residual blocks, or there are not as
            many class names as classes.
        CheckpointError: if the file is damaged or does not fit the model.
    """
    image = image or plain_image(name)
    file = File.read(Path(weights))
    with without_memory():
        shapes = [create_backbone(name, image.channels, count).state_dict() for count in (2, 3)]
    tensors = _tensors_for(shapes[0], file, on_prefix)
    classes = classes_in(tensors, *shapes)
    if classes is None:
        raise CheckpointError(f"{weights} has no classifier of {name}: give that model's weights")
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if len(names) != classes:
        raise ConfigError(
            f"{len(names)} class names do not fit the {classes} classes of {weights}: give one each"
        )
    with without_memory():
        fitting = create_backbone(name, image.channels, classes).state_dict()
    check_state(fitting, tensors, weights)
    spec = ModelSpec(
        model=ModelConfig(name=name),
        options=("full",),
        quant=QuantConfig(),
        gate=GateConfig(),
        image=image,
        class_names=names,
        data_name="",
    )
    backbone = create_backbone(name, image.channels, classes)
    apply_state(backbone, tensors, weights)
    net = build_network(spec, backbone)
    net.digest = _sha256(file)
    return net.eval()


def _sha256(file: File) -> str:
    return f"sha256:{hashlib.sha256(file.data).hexdigest()}"


def _tensors_for(
    own: Mapping[str, Tensor], file: File, on_prefix: Callable[[str], None] | None
) -> dict[str, Tensor]:
    """A file's tensors under the names of a plain network's state."""
    if file.is_ours:
        package = unpacked(file, SCHEMA)
        spec = package.meta.get("spec")
        if not isinstance(spec, dict) or spec.get("options") != ["full"]:
            raise CheckpointError(
                f"{file.path} is a dynamic network; a backbone is plain weights, or a checkpoint "
                "whose options are 'full' alone"
            )
        inside = {f"backbone.{name}": name for name in own}
        tensors = {inside[key]: value for key, value in package.tensors.items() if key in inside}
    else:
        tensors, prefix = unwrapped(file.tensors(), own)
        if prefix:
            (on_prefix or _warn_of(file.path))(prefix)
    for name in own:
        # torch's step counter of BatchNorm; other writers leave it out.
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, torch.tensor(0))
    return tensors


def _warn_of(path: Path) -> Callable[[str], None]:
    def warn(prefix: str) -> None:
        warnings.warn(
            f"every name in {path} begins with {prefix!r}, which was left out", stacklevel=4
        )

    return warn
