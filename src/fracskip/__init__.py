"""fracskip: dynamic fractional skipping.

For every input image and every residual block a small gate chooses: skip the block, execute it at
a low bitwidth, or execute it in full. Names that need torch are loaded when first used, so that
the base package imports without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fracskip.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    FracskipError,
    MissingExtraError,
)
from fracskip.options import Option, OptionSet
from fracskip.version import __version__

if TYPE_CHECKING:
    from fracskip.checkpoint.files import load, save
    from fracskip.config import GateConfig, ImageConfig, QuantConfig
    from fracskip.data import load_sample
    from fracskip.deployment import export, export_bundle
    from fracskip.dynamic import DynamicNetwork, build_network, convert, preprocess, quantize
    from fracskip.evaluation import evaluate
    from fracskip.evaluation.sweep import sweep
    from fracskip.evaluation.thresholds import cascade
    from fracskip.models import register_adapter
    from fracskip.operating import OperatingPoints, Prediction
    from fracskip.runtime import Cascade, InferenceSession
    from fracskip.training import fit

_LAZY = {
    "Cascade": "fracskip.runtime",
    "DynamicNetwork": "fracskip.dynamic",
    "GateConfig": "fracskip.config",
    "ImageConfig": "fracskip.config",
    "InferenceSession": "fracskip.runtime",
    "OperatingPoints": "fracskip.operating",
    "Prediction": "fracskip.operating",
    "QuantConfig": "fracskip.config",
    "build_network": "fracskip.dynamic",
    "cascade": "fracskip.evaluation",
    "convert": "fracskip.dynamic",
    "evaluate": "fracskip.evaluation",
    "export": "fracskip.deployment",
    "export_bundle": "fracskip.deployment",
    "fit": "fracskip.training",
    "load": "fracskip.checkpoint.files",
    "load_sample": "fracskip.data",
    "preprocess": "fracskip.dynamic",
    "quantize": "fracskip.dynamic",
    "register_adapter": "fracskip.models",
    "save": "fracskip.checkpoint.files",
    "sweep": "fracskip.evaluation",
}

__all__ = [
    "BundleError",
    "Cascade",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DynamicNetwork",
    "FracskipError",
    "GateConfig",
    "ImageConfig",
    "InferenceSession",
    "MissingExtraError",
    "OperatingPoints",
    "Option",
    "OptionSet",
    "Prediction",
    "QuantConfig",
    "__version__",
    "build_network",
    "cascade",
    "convert",
    "evaluate",
    "export",
    "export_bundle",
    "fit",
    "load",
    "load_sample",
    "preprocess",
    "quantize",
    "register_adapter",
    "save",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fracskip' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            f"fracskip.{name} needs torch: pip install 'fracskip[train]'"
        ) from None
