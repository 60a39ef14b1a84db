"""A trained network as a bundle: what docs/bundle.md says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from fracskip.deployment.network import NetworkWriter
from fracskip.deployment.writer import Array
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.runtime.bundle import Bundle, encode_bundle, parse_bundle, write_bundle
from fracskip.runtime.plan import Plan


def export_bundle(net: DynamicNetwork, path: str | Path) -> str:
    """Writes a network as a bundle. Returns the bundle's digest.

    Args:
        net: A network of 'lsq' quantisation, or one without quantised options.
        path: Where to; by custom it ends in .fsk.

    Raises:
        ConfigError: if its quantisation, or a step of it, has no place in a bundle.
        BundleError: if the file cannot be written.
    """
    plan, tensors = bundle_of(net)
    return write_bundle(path, plan, tensors)


def bundle_in_memory(net: DynamicNetwork) -> Bundle:
    """A network as the bundle that `export_bundle` would write.

    Raises:
        ConfigError: if its quantisation, or a step of it, has no place in a bundle.
    """
    data, _ = encode_bundle(*bundle_of(net))
    return parse_bundle(data, net.spec.model.name)


@torch.no_grad()
def bundle_of(net: DynamicNetwork) -> tuple[Plan, dict[str, Array]]:
    """A network's plan and tensors.

    Raises:
        ConfigError: if its quantisation, or a step of it, has no place in a bundle.
    """
    if net.spec.quant.scheme == "paper" and any(option.is_quantised for option in net.options):
        raise ConfigError(
            "'paper' quantisation is affine, with one range for all widths, and has no place in a "
            "bundle: run the checkpoint itself (fracskip eval CHECKPOINT), or train with "
            "quant.scheme = 'lsq'"
        )
    writer = NetworkWriter(net)
    return writer.plan(), writer.tensors
