"""Traced networks as bundles: what tests of their deployment begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tests.support.residual_networks import Loose, make_images, make_plain, settled
from torch import Tensor, nn

import fracskip
from fracskip.dynamic import DynamicNetwork
from fracskip.runtime import InferenceSession

Kind = Callable[[int, int, int], nn.Module]


def plain_of(kind: Kind | type[Loose]) -> nn.Module:
    """A plain network of blocks of a kind, its norms settled."""
    torch.manual_seed(0)
    return settled(Loose(), make_images(8)) if kind is Loose else make_plain(kind)  # type: ignore[arg-type]


def session_of(net: DynamicNetwork, folder: Path) -> InferenceSession:
    """A network's bundle on the portable engine."""
    fracskip.export(net, folder / "net.fsk")
    return InferenceSession(folder / "net.fsk", engine="portable")


def pixels(images: Tensor) -> np.ndarray:
    """Normalised images as a session takes them."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()
