"""Networks in checkpoints: spec, operating points, notes and tensors.

Loading connects to nothing, reads no other file, and makes no network before the file's tensors are
known to fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from fracskip import legacy
from fracskip.checkpoint.package import (
    SCHEMA,
    Package,
    read_package,
    resolve,
    tensor_digest,
    write_package,
)
from fracskip.config import ModelSpec, explain
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.dynamic.packing import pack, unpack
from fracskip.dynamic.state import check_shapes, check_state, outline, outline_backbone
from fracskip.errors import CheckpointError
from fracskip.models.layers import copy_of
from fracskip.models.structure import find_blocks
from fracskip.operating import OperatingPoints


def save(
    net: DynamicNetwork,
    path: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
) -> str:
    """Saves a network. Returns its digest, which is over the tensors of the file alone.

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
    tensors = pack(net) if packed else net.state_dict()
    write_package(path, SCHEMA, meta, tensors)
    return tensor_digest({name: value.detach().cpu() for name, value in tensors.items()})


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
    net.digest = tensor_digest(package.tensors)
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
