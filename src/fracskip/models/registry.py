"""Backbones by name.

A name may come from a file that nobody vouches for. It has to be one that the library itself lists
as an architecture, and the network that it stands for is made with fresh weights: nothing is
fetched, and no file is read.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fracskip.errors import ConfigError, MissingExtraError
from fracskip.models.resnet import CifarResNet

_NORMALISES = ("mean", "std")
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
    match = re.fullmatch(r"resnet([0-9]{1,4})", name)
    depth = int(match.group(1)) if match else 0
    if not (8 <= depth <= MAX_DEPTH and depth % 6 == 2):
        raise ConfigError(
            f"model {name!r} is unknown: use resnetD with D = 6n + 2, such as "
            f"{', '.join(list_models())}"
        )
    return CifarResNet((depth - 2) // 6, in_channels, num_classes)


def name_of(net: nn.Module) -> str | None:
    """The name by which `create_model` makes a network of this shape; None if it makes none.

    >>> name_of(create_model("resnet20"))
    'resnet20'
    """
    return f"resnet{6 * len(net.layer1) + 2}" if isinstance(net, CifarResNet) else None


def create_backbone(name: str, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """Makes a backbone with fresh weights: one of ours, torchvision's or timm's.

    Args:
        name: As `create_model` takes it; 'torchvision/NAME', a classifier that
            `torchvision.models.list_models(module=torchvision.models)` lists; or 'timm/NAME', that
            `timm.list_models()` lists, with or without a tag after a dot.
        in_channels: Of the images; torchvision's take 3.
        num_classes: Of the classifier.

    Raises:
        ConfigError: for an unknown name.
        MissingExtraError: if the library is not installed.
    """
    library, separator, model = name.partition("/")
    if not separator:
        return create_model(name, in_channels, num_classes)
    keywords: dict[str, Any]
    if library == "torchvision":
        models = _library("torchvision.models")
        listing = "torchvision.models.list_models(module=torchvision.models)"
        known = model in models.list_models(module=models)
        make, keywords = models.get_model, {"weights": None}
    elif library == "timm":
        timm = _library("timm")
        listing = "timm.list_models()"
        known = model in timm.list_models() or model in timm.list_models(pretrained=True)
        make, keywords = timm.create_model, {"pretrained": False, "in_chans": in_channels}
    else:
        raise ConfigError(
            f"model {name!r} was made from a module that only its owner's code can make: pass it "
            "along, as in fracskip.load(path, model=net)"
        )
    if not known:
        raise ConfigError(f"{library} makes no model {model!r}: give one that {listing} lists")
    try:
        net: nn.Module = make(model, num_classes=num_classes, **keywords)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{library} makes no model {model!r}: {error}") from None
    return net.eval()


def normalisation_of(
    net: nn.Module, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the images that a network was trained on, as timm's say.

    Args:
        net: The network.
        channels: Of its images.

    Returns:
        One of each a channel, in units of pixel / 255; None if it does not say, or not for so many.
    """
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    mean, std = (
        (config or {}).get(key) if isinstance(config, dict) else None for key in _NORMALISES
    )
    if not (isinstance(mean, Sequence) and isinstance(std, Sequence)):
        return None
    if not len(mean) == len(std) == channels:
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = {"torchvision": "vision"}.get(package, package)
        raise MissingExtraError(
            f"models of {package} need it installed ({error}): pip install 'fracskip[{extra}]'"
        ) from None


class without_memory(TorchFunctionMode):  # noqa: N801 - a context manager
    """Within it, new networks get parameters on the meta device: shapes without memory.

    Unlike with `torch.device("meta")`, what a constructor computes with (`arange`, `linspace`) has
    values.

    >>> with without_memory():
    ...     net = nn.Linear(10**6, 10**6)
    >>> net.weight.is_meta
    True
    """

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.randn})
    _FILLING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Redirects what allocates, and spares what fills nothing the time."""
        if func in self._FILLING and args[0].is_meta:
            return args[0]
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
