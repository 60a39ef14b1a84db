"""Checkpoints: one safetensors file whose header says, in JSON, what network it holds.

The header's metadata has one entry, `fracskip`: schema, version, spec, notes and a SHA-256 digest
over the tensors and the rest of the metadata. Files are written beside the old one and renamed
over it, so a crash or a full disk leaves the old one whole. Nothing here can unpickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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

from fracskip.config import ModelSpec, explain
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.dynamic.packing import pack, unpack
from fracskip.errors import CheckpointError
from fracskip.files import split_safetensors, write_atomically

SCHEMA = "fracskip.checkpoint"
VERSION = 1
# Published networks by name; docs/results.md and models/README.md say what each is.
BUNDLED = {
    "bundled": "dfs_resnet38_cifar10.safetensors",
    "dfs-resnet38-cifar10": "dfs_resnet38_cifar10.safetensors",
    "dfs-resnet74-cifar10": "dfs_resnet74_cifar10.safetensors",
    "dfs-resnet38-cifar100": "dfs_resnet38_cifar100.safetensors",
    "cpu-resnet74-cifar10": "cpu_resnet74_cifar10.safetensors",
}


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


def _digest(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
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

    Raises:
        CheckpointError: if the file cannot be written.
    """
    head = {"schema": schema, "version": VERSION, "meta": json.loads(json.dumps(meta))}
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    digest = _digest(head, flat)
    text = json.dumps({**head, "digest": digest}, sort_keys=True)
    write_atomically(Path(path), save_tensors(flat, metadata={"fracskip": text}))
    return digest


def _read(path: Path) -> tuple[bytes, dict[str, str] | None]:
    """A safetensors file's bytes and its header's metadata."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {path} does not exist; give a .safetensors file or one of: "
            f"{', '.join(BUNDLED)}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    header, _ = split_safetensors(data, path)
    try:
        meta = json.loads(header).get("__metadata__")
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} has a damaged header; copy it again") from None
    return data, meta if isinstance(meta, dict) else None


def _parse(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from None


def read_package(path: str | Path, schema: str) -> Package:
    """Loads a file in fracskip's format and verifies its schema, version and digest.

    Raises:
        CheckpointError: naming what does not fit.
    """
    path = Path(path)
    data, meta = _read(path)
    if not meta or "fracskip" not in meta:
        raise CheckpointError(
            f"{path} is a plain safetensors file without fracskip's metadata; a backbone's "
            "weights go into a recipe's backbone.load, then train"
        )
    if "digest" in meta:
        raise CheckpointError(
            f"{path} is a bundle, not a checkpoint: run it with fracskip.InferenceSession (the "
            "command line knows bundles by the suffix .fsk)"
        )
    try:
        head = json.loads(meta["fracskip"])
        digest = head.pop("digest")
        found = (head["schema"], head["version"])
        content = dict(head["meta"])
        # Another spelling of the same values is damage too: every byte is vouched for.
        if json.dumps({**head, "digest": digest}, sort_keys=True) != meta["fracskip"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} has damaged metadata; copy it again") from None
    if found != (schema, VERSION):
        raise CheckpointError(
            f"{path} is {found[0]!r} version {found[1]}; this fracskip reads {schema!r} version "
            f"{VERSION}: use the fracskip that wrote it, or train again"
        )
    tensors = _parse(path, data)
    if _digest(head, tensors) != digest:
        raise CheckpointError(
            f"{path} does not match its digest: at least one byte was changed since it was "
            "written; copy it again"
        )
    return Package(schema, content, tensors, digest)


def apply_state(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Loads tensors into a module, all or nothing.

    Raises:
        CheckpointError: if one is missing, surplus, of another shape or kind, or not finite.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - wanted.keys())
    if missing or surplus:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("surplus", surplus))
            if names
        ]
        raise CheckpointError(
            f"{origin} does not fit the network: tensors {' and '.join(parts)}; check the model's "
            "name, options and gate"
        )
    for name, own in wanted.items():
        value = tensors[name]
        if value.shape != own.shape:
            raise CheckpointError(
                f"{origin}: {name} has shape {tuple(value.shape)}, the network needs "
                f"{tuple(own.shape)}; check the model's name and options"
            )
    for name, own in wanted.items():
        value = tensors[name]
        if value.is_floating_point() != own.is_floating_point():
            raise CheckpointError(
                f"{origin}: {name} holds {value.dtype}, the network needs {own.dtype}; check the "
                "file, or train again"
            )
        # A range that no image has moved yet is NaN by design.
        if value.is_floating_point() and not name.endswith("activation_range"):
            bad = int((~value.to(own.dtype).isfinite()).sum())
            if bad:
                raise CheckpointError(
                    f"{origin}: {name} has {bad} values that are NaN or infinite; train again "
                    "with a smaller learning rate, or give another file"
                )
    module.load_state_dict(dict(tensors))


def load_backbone(
    path: str | Path,
    module: nn.Module,
    on_other_classes: Callable[[str, int, int], None] | None = None,
) -> str:
    """Loads a plain network. Returns the file's SHA-256.

    Args:
        path: Plain weights with torchvision's parameter names, or a checkpoint of a static network
            in full precision (an option set of 'full' alone), which holds the same.
        module: The network to fill.
        on_other_classes: If given, a file of another number of classes is taken too: the module's
            last linear layer keeps its fresh weights, and this is called with the layer's name and
            the number of classes of the file and of the module.

    Raises:
        CheckpointError: if the file is damaged or does not fit.
    """
    path = Path(path)
    data, meta = _read(path)
    tensors = _parse(path, data)
    own = module.state_dict()
    if meta and "fracskip" in meta:
        package = read_package(path, SCHEMA)
        if package.meta.get("spec", {}).get("options") != ["full"]:
            raise CheckpointError(
                f"{path} is a dynamic network; a backbone is plain weights, or a checkpoint whose "
                "options are 'full' alone"
            )
        inside = {f"backbone.{name}": name for name in own}
        tensors = {inside[key]: value for key, value in package.tensors.items() if key in inside}
    for name, value in own.items():
        # torch's step counter of BatchNorm; other writers leave it out.
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, value)
    if on_other_classes is not None and (found := _other_classes(module, tensors)):
        on_other_classes(*found)
        layer = found[0]
        tensors.update({name: own[name] for name in own if name.rpartition(".")[0] == layer})
    apply_state(module, tensors, path)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _other_classes(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """The last linear layer, and its outputs in the tensors and in the module, where they differ.

    None if they agree, or something else about the layer differs too.
    """
    linear = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        return None
    name, part = linear[-1]
    weight, ours = tensors.get(f"{name}.weight"), part.out_features
    if weight is None or weight.dim() != 2 or weight.shape[1] != part.in_features:
        return None
    theirs = len(weight)
    bias = tensors.get(f"{name}.bias")
    if theirs == ours or (bias is None) != (part.bias is None):
        return None
    return (name, theirs, ours) if bias is None or bias.shape == (theirs,) else None


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
    meta = {"spec": net.spec.model_dump(mode="json"), "notes": dict(notes or {})}
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
        net = build_network(ModelSpec.model_validate(package.meta.get("spec", {})), model)
        notes = dict(package.meta.get("notes", {}))
    except (ValueError, TypeError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} describes no network: {reason}") from None
    apply_state(net, unpack(net, package.tensors), path)
    net.digest = package.digest
    net.notes = notes
    return net.eval()
