"""Backbones by name."""

from __future__ import annotations

import re

from fracskip.errors import ConfigError
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
