"""The file format of checkpoints and training states: safetensors with digested JSON metadata.

The header's metadata has one entry, `fracskip`: schema, version, what the file's kind says, and a
SHA-256 digest over the tensors and the rest of the metadata. Files are written beside the old one
and renamed over it, so a crash or a full disk leaves the old one whole. Reading unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fracskip.errors import CheckpointError
from fracskip.files import parse_json, read_file, read_header, write_atomically

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
class File:
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
    def read(cls, path: Path) -> File:
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


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """'sha256:...' over tensors alone: what a network goes by, whatever words describe it."""
    return _digest("", tensors)


def _digest(head: str, tensors: Mapping[str, Tensor]) -> str:
    """The digest over a text and tensors."""
    total = hashlib.sha256(head.encode())
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
    digest = _digest(json.dumps(head, sort_keys=True), flat)
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
    return unpacked(File.read(Path(path)), schema)


def unpacked(file: File, schema: str) -> Package:
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
    if _digest(json.dumps(head, sort_keys=True), tensors) != digest:
        raise CheckpointError(
            f"{path} does not match its digest: at least one byte was changed since it was "
            "written; copy it again"
        )
    return Package(schema, content, tensors, digest)


def resolve(name: str | Path) -> Path:
    """A checkpoint's path: that of a published one by name, or the path itself."""
    if str(name) in BUNDLED:
        return Path(str(resources.files("fracskip") / "assets" / BUNDLED[str(name)]))
    return Path(name)
