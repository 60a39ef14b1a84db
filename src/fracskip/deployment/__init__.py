"""What a trained network becomes outside of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fracskip.deployment.bundle import export_bundle
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.runtime.bundle import SUFFIX

__all__ = ["export", "export_bundle", "writer_for"]


def writer_for(path: str | Path) -> Callable[[DynamicNetwork, str | Path], object]:
    """What writes a file of a name: .fsk is a bundle, .onnx an ONNX model.

    Raises:
        ConfigError: if the name ends otherwise.
        MissingExtraError: if what writes it is not installed.
    """
    suffix = Path(path).suffix
    if suffix == SUFFIX:
        return export_bundle
    if suffix == ".onnx":
        # Loaded when it is asked for: it needs the onnx package.
        from fracskip.deployment.onnx import export_onnx

        return export_onnx
    raise ConfigError(f"{path} ends in neither {SUFFIX} nor .onnx: choose one of them")


def export(net: DynamicNetwork, path: str | Path) -> None:
    """Writes a network for engines that need no torch: see docs/bundle.md.

    Args:
        net: A network of 'modern' quantisation, or one without quantised options.
        path: Where to; .fsk is a bundle, .onnx an ONNX model.

    Raises:
        ConfigError: if the name ends otherwise, or a part of the network has no place there.
        BundleError: if a bundle cannot be written.
        CheckpointError: if an ONNX model cannot be written.
    """
    writer_for(path)(net, path)
