"""What a trained network becomes outside of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fracskip.deployment.bundle import export_bundle
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.runtime.bundle import SUFFIX
from fracskip.runtime.cascade import Cascade

__all__ = ["export", "export_bundle", "writer_for"]


def _bundle(net: DynamicNetwork | Cascade, path: str | Path) -> str:
    return net.save(path) if isinstance(net, Cascade) else export_bundle(net, path)


def writer_for(path: str | Path) -> Callable[[DynamicNetwork | Cascade, str | Path], object]:
    """What writes a file of a name: .fsk is a bundle, .onnx an ONNX model.

    Raises:
        ConfigError: if the name ends otherwise.
        MissingExtraError: if what writes it is not installed.
    """
    suffix = Path(path).suffix
    if suffix == SUFFIX:
        return _bundle
    if suffix == ".onnx":
        # Loaded when it is asked for: it needs the onnx package.
        from fracskip.deployment.onnx import export_onnx

        return export_onnx
    raise ConfigError(f"{path} ends in neither {SUFFIX} nor .onnx: choose one of them")


def export(net: DynamicNetwork | Cascade, path: str | Path) -> None:
    """Writes a network for engines that need no torch: see docs/bundle.md.

    Args:
        net: A network of 'lsq' quantisation, or one without quantised options; or a cascade.
        path: Where to; .fsk is a bundle, .onnx an ONNX model. Of a cascade each network is a model,
            NAME.0.onnx and so on, and NAME.json says how they go together.

    Raises:
        ConfigError: if the name ends otherwise, or a part of the network has no place there.
        BundleError: if a bundle cannot be written.
        CheckpointError: if an ONNX model cannot be written.
    """
    writer_for(path)(net, path)
