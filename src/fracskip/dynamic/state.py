"""Whether tensors are what a network needs, asked before the network is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fracskip.config import ModelSpec
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.errors import CheckpointError
from fracskip.models import create_backbone
from fracskip.models.registry import without_memory


def outline(spec: ModelSpec, model: nn.Module | None = None) -> DynamicNetwork:
    """A network without memory for its weights: what `build_network` would make, in shapes alone.

    Args:
        spec: What it is.
        model: Its backbone, if its name alone can't make it.

    Raises:
        ConfigError: if the model's name is unknown, or the model has other blocks.
    """
    with without_memory():
        if model is None:
            image, classes = spec.image, len(spec.class_names)
            model = create_backbone(spec.model.name, image.channels, classes)
        else:
            model = copy.deepcopy(model)
        return build_network(spec, model.to("meta"))


def check_state(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: object
) -> None:
    """Holds tensors against a network's state.

    Args:
        wanted: The state; its shapes and types count, its values do not.
        tensors: What is there.
        origin: What to call it in errors.

    Raises:
        CheckpointError: if one is missing, surplus, of another shape or kind, or not finite.
    """
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


def apply_state(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Loads tensors into a module, all or nothing.

    Raises:
        CheckpointError: if one is missing, surplus, of another shape or kind, or not finite.
    """
    check_state(module.state_dict(), tensors, origin)
    module.load_state_dict(dict(tensors))
