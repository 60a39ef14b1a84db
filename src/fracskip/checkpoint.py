"""Checkpoints: one safetensors file whose header says, in JSON, what network it holds.

The header's metadata has one entry, `fracskip`: schema, version, spec, operating points, notes and
a SHA-256 digest over the tensors and the rest of the metadata. Files are written beside the old one
and renamed over it, so a crash or a full disk leaves the old one whole.

Loading unpickles nothing, connects to nothing, reads no other file, and makes no network before the
file's tensors are known to fit it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from fracskip import legacy
from fracskip.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    QuantConfig,
    explain,
)
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.dynamic.packing import pack, unpack
from fracskip.dynamic.state import apply_state as apply_state
from fracskip.dynamic.state import check_shapes, check_state, outline, outline_backbone
from fracskip.errors import CheckpointError, ConfigError
from fracskip.files import parse_json, read_file, read_header, write_atomically
from fracskip.models import create_backbone
from fracskip.models.layers import copy_of
from fracskip.models.registry import without_memory
from fracskip.models.structure import find_blocks
from fracskip.models.weights import classes_in, other_classes, unwrapped
from fracskip.operating import OperatingPoints

SCHEMA = "fracskip.checkpoint"
VERSION = 2
READABLE = (1, 2)  # see `fracskip.legacy` for what 1 says otherwise
# Published networks by name; docs/results.md and models/README.md say what each is.
BUNDLED = {
    "bundled": "dfs_resnet38_cifar10.safetensors",
    "dfs-resnet38-cifar10": "dfs_resnet38_cifar10.safetensors",
    "dfs-resnet74-cifar10": "dfs_resnet74_cifar10.safetensors",
    "dfs-resnet38-cifar100": "dfs_resnet38_cifar100.safetensors",
    "cpu-resnet74-cifar10": "cpu_resnet74_cifar10.safetensors",
}

IMAGENET_SIZE = (224, 224)


@dataclass(frozen=True)
class Package:
    """The contents of a file in fracskip's format.

    Attributes:
        schema: What kind of file it is.
        meta: Its JSON metadata, without schema, version and digest.
        tensors: Its tensors by name, on the CPU.
        digest: 'sha256:...' over meta and tensors.
    """

    schema: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    digest: str


@dataclass(frozen=True)
class _File:
    """A safetensors file of any kind.

    Attributes:
        path: Where it lies.
        data: Its bytes.
        meta: Its header's metadata, if it has any.
    """

    path: Path
    data: bytes
    meta: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> _File:
        """Reads a file.

        Raises:
            CheckpointError: if it is no safetensors file, or can't be read.
        """
        instead = f"give a .safetensors file or one of: {', '.join(BUNDLED)}"
        data = read_file(path, "checkpoint", CheckpointError, instead)
        _, meta, _ = read_header(data, path)
        return cls(path, data, meta)

    @property
    def is_ours(self) -> bool:
        """Whether it says that it is a checkpoint or a bundle."""
        return self.meta is not None and "fracskip" in self.meta

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors.

        Raises:
            CheckpointError: if they are not what its header says.
        """
        try:
            return load_tensors(self.data)
        except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}); copy it again") from None


def _digest(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The digest over metadata and tensors."""
    total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return f"sha256:{total.hexdigest()}"


def write_package(
    path: str | Path, schema: str, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> str:
    """Saves metadata and tensors in fracskip's format, atomically. Returns the digest.

    Tensors may share memory (tied weights): each is written by itself.

    Raises:
        CheckpointError: if the file cannot be written, or the metadata are more than is read.
    """
    head = {"schema": schema, "version": VERSION, "meta": json.loads(json.dumps(meta))}
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    seen: set[int] = set()
    for name, value in flat.items():
        place = value.untyped_storage().data_ptr()
        if place in seen:
            flat[name] = value.clone()
        seen.add(place)
    digest = _digest(head, flat)
    text = json.dumps({**head, "digest": digest}, sort_keys=True)
    try:
        parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} could not be read again ({error}): give less") from None
    write_atomically(Path(path), save_tensors(flat, metadata={"fracskip": text}))
    return digest


def read_package(path: str | Path, schema: str) -> Package:
    """Loads a file in fracskip's format and verifies its schema, version and digest.

    Args:
        path: Which.
        schema: The kind that it has to be of.

    Raises:
        CheckpointError: naming what does not fit.
    """
    return _unpacked(_File.read(Path(path)), schema)


def _unpacked(file: _File, schema: str) -> Package:
    """What a file in fracskip's format holds; see `read_package`.

    Raises:
        CheckpointError: naming what does not fit.
    """
    path, meta = file.path, file.meta
    if not file.is_ours or meta is None:
        raise CheckpointError(
            f"{path} is a plain safetensors file without fracskip's metadata: name the model that "
            "its weights are for (--model NAME --weights FILE, or fracskip.checkpoint.load_plain), "
            "or train from it (a recipe's backbone.load)"
        )
    if "digest" in meta:
        raise CheckpointError(
            f"{path} is a bundle, not a checkpoint: run it with fracskip.InferenceSession (the "
            "command line knows bundles by the suffix .fsk)"
        )
    try:
        head = parse_json(meta["fracskip"])
        digest = head.pop("digest")
        found = (head["schema"], head["version"])
        content = dict(head["meta"])
        # Another spelling of the same values is damage too: every byte is vouched for.
        if json.dumps({**head, "digest": digest}, sort_keys=True) != meta["fracskip"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} has damaged metadata; copy it again") from None
    if found not in [(schema, version) for version in READABLE]:
        raise CheckpointError(
            f"{path} is {found[0]!r} version {found[1]}; this fracskip reads {schema!r} versions "
            f"{READABLE[0]} to {VERSION}: use the fracskip that wrote it, or train again"
        )
    tensors = file.tensors()
    if _digest(head, tensors) != digest:
        raise CheckpointError(
            f"{path} does not match its digest: at least one byte was changed since it was "
            "written; copy it again"
        )
    return Package(schema, content, tensors, digest)


def save(
    net: DynamicNetwork,
    path: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
) -> str:
    """Saves a network. Returns its digest.

    Args:
        net: The network.
        path: Where to; folders are made.
        notes: JSON values to keep with it: where it comes from, what it reached.
        packed: Hold weights that only ever execute as integers of at most 8 bits as those: a file
            to publish, a quarter as large, from which training goes on less finely.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    meta = {
        "spec": net.spec.model_dump(mode="json"),
        "operating_points": net.operating_points.model_dump(mode="json"),
        "notes": dict(notes or {}),
    }
    return write_package(path, SCHEMA, meta, pack(net) if packed else net.state_dict())


def resolve(name: str | Path) -> Path:
    """A checkpoint's path: that of a published one by name, or the path itself."""
    if str(name) in BUNDLED:
        return Path(str(resources.files("fracskip") / "assets" / BUNDLED[str(name)]))
    return Path(name)


def load(name: str | Path, model: nn.Module | None = None) -> DynamicNetwork:
    """Loads a network, ready to classify, on the CPU.

    Args:
        name: A published network's name, such as 'bundled' or 'cpu-resnet74-cifar10', or a file's
            path.
        model: The plain network that it was converted from, if that is neither ours nor
            torchvision's nor timm's: weights are the file's, this says what they are for.

    Returns:
        The network in evaluation mode; `net.digest` and `net.notes` say where it comes from.

    Raises:
        CheckpointError: if the file is damaged, of another schema, or does not fit.
    """
    path = resolve(name)
    package = read_package(path, SCHEMA)
    try:
        meta = legacy.checkpoint(package.meta)
        spec = ModelSpec.model_validate(meta.get("spec", {}))
        if legacy.first_block_in_stem(package.meta):
            spec = _with_named_blocks(spec, model)
        points = OperatingPoints.model_validate(meta.get("operating_points", {}))
        notes = dict(meta.get("notes", {}))
        shapes = _outlined(spec, package, path) if model is None else build_network(spec, model)
        shapes.checked_points(points)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} describes no network: {reason}") from None
    state = unpack(shapes, package.tensors)
    check_state(shapes.state_dict(), state, path)
    net = build_network(spec, like=shapes) if model is None else shapes
    net.load_state_dict(state)
    net.operating_points = points
    net.digest = package.digest
    net.notes = notes
    return net.eval()


def _with_named_blocks(spec: ModelSpec, model: nn.Module | None) -> ModelSpec:
    """A spec that names its gated blocks, so that the block in front of them is none."""
    backbone = outline_backbone(spec) if model is None else copy_of(model).eval()
    found = find_blocks(backbone, (spec.image.channels, *spec.image.size))
    tree = spec.model_dump()
    tree["model"]["blocks"] = tuple(block.name for block in found.blocks)
    return ModelSpec.model_validate(tree)


def _outlined(spec: ModelSpec, package: Package, path: Path) -> DynamicNetwork:
    """A network without memory for its weights; no more is made of it than the file's fit."""
    backbone = outline_backbone(spec)
    own = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    check_shapes(own, package.tensors, path)
    return outline(spec, backbone)


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
    file = _File.read(Path(path))
    tensors = _tensors_for(own, file, on_prefix)
    if on_other_classes is not None and (found := other_classes(module, tensors)):
        on_other_classes(*found)
        layer = found[0]
        tensors.update({name: own[name] for name in own if name.rpartition(".")[0] == layer})
    apply_state(module, tensors, path)
    return _sha256(file)


def plain_image(name: str, size: tuple[int, int] | None = None) -> ImageConfig:
    """What a model usually takes: CIFAR-10's images, or ImageNet's for torchvision's and timm's.

    Args:
        name: As `fracskip.models.create_backbone` takes it.
        size: Another height and width.
    """
    if "/" not in name:
        return ImageConfig(size=size or ImageConfig().size)
    return ImageConfig(size=size or IMAGENET_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


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
    file = _File.read(Path(weights))
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


def _sha256(file: _File) -> str:
    return f"sha256:{hashlib.sha256(file.data).hexdigest()}"


def _tensors_for(
    own: Mapping[str, Tensor], file: _File, on_prefix: Callable[[str], None] | None
) -> dict[str, Tensor]:
    """A file's tensors under the names of a plain network's state."""
    if file.is_ours:
        package = _unpacked(file, SCHEMA)
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
