"""Whether tensors are what a network needs, asked before the network is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fracskip.config import ModelSpec
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.errors import CheckpointError
from fracskip.models import create_backbone
from fracskip.models.registry import without_memory


def outline_backbone(spec: ModelSpec) -> nn.Module:
    """A network's backbone without memory for its weights: shapes alone.

    Raises:
        ConfigError: if the model's name is unknown.
    """
    with without_memory():
        image, classes = spec.image, len(spec.class_names)
        return create_backbone(spec.model.name, image.channels, classes).to("meta")


def outline(spec: ModelSpec, backbone: nn.Module) -> DynamicNetwork:
    """A network without memory for its weights, of the outline of its backbone.

    Raises:
        ConfigError: if the backbone has other blocks than the spec says.
    """
    with without_memory():
        return build_network(spec, backbone)


def check_shapes(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str | Path
) -> None:
    """Refuses tensors that lack one of a state's, or have it in another shape.

    Args:
        wanted: The state; what its tensors hold does not matter.
        tensors: What is there.
        origin: What to call it in errors.

    Raises:
        CheckpointError: saying which.
    """
    _check_names(sorted(wanted.keys() - tensors.keys()), [], origin)
    for name, own in wanted.items():
        value = tensors[name]
        if value.shape != own.shape:
            raise CheckpointError(
                f"{origin}: {name} has shape {tuple(value.shape)}, the network needs "
                f"{tuple(own.shape)}; check the model's name and options"
            )


def _check_names(missing: list[str], surplus: list[str], origin: str | Path) -> None:
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


def check_state(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str | Path
) -> None:
    """Holds tensors against a network's state.

    Args:
        wanted: The state; shapes and types count, what its tensors hold does not.
        tensors: What is there.
        origin: What to call it in errors.

    Raises:
        CheckpointError: if one is missing, surplus, of another shape or kind, or not finite.
    """
    names = wanted.keys(), tensors.keys()
    _check_names(sorted(names[0] - names[1]), sorted(names[1] - names[0]), origin)
    check_shapes(wanted, tensors, origin)
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
