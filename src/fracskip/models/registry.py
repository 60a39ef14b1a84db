"""Backbones by name."""

from __future__ import annotations

import importlib
import re
from typing import Any

from torch import nn

from fracskip.errors import ConfigError, MissingExtraError
from fracskip.models.resnet import CifarResNet

MAX_DEPTH = 1202  # the deepest of He et al.; also keeps a typo from filling the memory


def list_models() -> list[str]:
    """The names most used; `create_model` takes any resnetD with D = 6n + 2."""
    return [f"resnet{depth}" for depth in (8, 14, 20, 32, 38, 44, 56, 74, 110)]


def create_model(name: str, in_channels: int = 3, num_classes: int = 10) -> CifarResNet:
    """Makes a backbone with fresh weights.

    Args:
        name: `resnetD`, D = 6n + 2.
        in_channels: Of the images.
        num_classes: Of the classifier.

    Raises:
        ConfigError: for another name or depth.

    >>> len(create_model("resnet20").named_blocks())
    9
    """
    match = re.fullmatch(r"resnet(\d{1,4})", name)
    depth = int(match.group(1)) if match else 0
    if not (8 <= depth <= MAX_DEPTH and depth % 6 == 2):
        raise ConfigError(
            f"model {name!r} is unknown: use resnetD with D = 6n + 2, such as "
            f"{', '.join(list_models())}"
        )
    return CifarResNet((depth - 2) // 6, in_channels, num_classes)


def create_backbone(name: str, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """Makes a backbone with fresh weights: one of ours, torchvision's or timm's.

    Args:
        name: As `create_model` takes it, 'torchvision/NAME' or 'timm/NAME'.
        in_channels: Of the images; torchvision's take 3.
        num_classes: Of the classifier.

    Raises:
        ConfigError: for an unknown name.
        MissingExtraError: if the library is not installed.
    """
    library, separator, model = name.partition("/")
    if not separator:
        return create_model(name, in_channels, num_classes)
    if library == "torchvision":
        make, also = _library("torchvision.models").get_model, {}
    elif library == "timm":
        make, also = _library("timm").create_model, {"in_chans": in_channels}
    else:
        raise ConfigError(
            f"model {name!r} was made from a module that only its owner's code can make: pass it "
            "along, as in fracskip.load(path, model=net)"
        )
    try:
        net: nn.Module = make(model, num_classes=num_classes, **also)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{library} makes no model {model!r}: {error}") from None
    return net.eval()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = {"torchvision": "vision"}.get(package, package)
        raise MissingExtraError(
            f"models of {package} need it installed ({error}): pip install 'fracskip[{extra}]'"
        ) from None
