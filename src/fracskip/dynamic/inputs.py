"""What a network refuses to be given.

Shapes: B images, L gated blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fracskip.config import ImageConfig
from fracskip.dynamic.routing import RoutedBlock
from fracskip.errors import ConfigError
from fracskip.options import OptionSet


def check_images(images: Tensor, image: ImageConfig) -> None:
    """Raises a ConfigError if normalised images (B, C, H, W) do not fit what a network takes."""
    if not images.is_floating_point():
        raise ConfigError(
            f"images of type {images.dtype} are pixels, not normalised floats: give "
            "fracskip.preprocess(images, net.spec.image), for uint8 (images, height, width, "
            "channels)"
        )
    if images.dim() != 4 or images.shape[1] != image.channels or not len(images):
        raise ConfigError(
            f"images of shape {tuple(images.shape)} do not fit: (images, {image.channels}, height, "
            "width) is needed, at least one image, normalised (see fracskip.preprocess)"
        )
    shape, wanted = tuple(images.shape[1:]), (image.channels, *image.size)
    if shape != wanted:
        raise ConfigError(
            f"images of shape {shape} do not fit: the network was traced on {wanted}, and "
            "what it computes may depend on that; resize them, or convert it again with an "
            "example_input of their size"
        )
    if not images.isfinite().all():
        raise ConfigError(
            "images hold NaN or infinite values: leave them out, or mend what makes them"
        )


def checked_decisions(
    decisions: Tensor, count: int, blocks: Sequence[RoutedBlock], options: OptionSet
) -> Tensor:
    """Decisions (B, L) as int64.

    Raises:
        ConfigError: if they do not fit blocks and options.
    """
    shape = (count, len(blocks))
    if decisions.shape != shape or decisions.is_floating_point():
        raise ConfigError(
            f"decisions of shape {tuple(decisions.shape)} and type {decisions.dtype} do not "
            f"fit: integers of shape {shape} are needed"
        )
    if decisions.numel() and not 0 <= int(decisions.min()) <= int(decisions.max()) < len(options):
        raise ConfigError(f"decisions must be option indices, 0 to {len(options) - 1}")
    if options.can_skip:
        for index, block in enumerate(blocks):
            if not block.can_be_skipped and bool((decisions[:, index] == 0).any()):
                raise ConfigError(
                    f"block {block.name} has no shortcut and can't be skipped: choose a width"
                )
    return decisions.to(torch.int64)
