"""What `fracskip.save` and `fracskip.load` take: a network's checkpoint, or a cascade's bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fracskip.checkpoint import networks
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import BundleError, ConfigError
from fracskip.runtime.bundle import SUFFIX
from fracskip.runtime.cascade import Cascade
from fracskip.runtime.cascade_bundle import CascadeBundle, read_any


def save(
    net: DynamicNetwork | Cascade,
    path: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
) -> str:
    """Saves a network as a checkpoint, or a cascade as the bundle that it is.

    Args:
        net: The network, or the cascade.
        path: Where to; folders are made.
        notes: Of a network; see `checkpoint.networks.save`.
        packed: Likewise.

    Returns:
        Its digest.

    Raises:
        CheckpointError, BundleError: if the file cannot be written.
        ConfigError: if a cascade's file does not end in .fsk.
    """
    if not isinstance(net, Cascade):
        return networks.save(net, path, notes, packed=packed)
    if Path(path).suffix != SUFFIX:
        raise ConfigError(f"{path} does not end in {SUFFIX}: a cascade is saved as its bundle")
    return net.save(path)


def load(name: str | Path, model: nn.Module | None = None) -> DynamicNetwork | Cascade:
    """Loads what `save` saved.

    Args:
        name: A published network's name, or a file's path.
        model: Of a checkpoint: the plain network that it was converted from, if that is neither
            ours nor torchvision's nor timm's.

    Raises:
        CheckpointError: if the file is damaged, of another schema, or does not fit.
        BundleError: likewise; or if it is a network's bundle, which runs in a session alone.
    """
    if Path(name).suffix != SUFFIX:
        return networks.load(name, model)
    bundle = read_any(name)
    if not isinstance(bundle, CascadeBundle):
        raise BundleError(
            f"{name} is a network's bundle, from which no torch network can be made: open it with "
            "fracskip.InferenceSession, or load the checkpoint it was exported from"
        )
    return Cascade(bundle)
