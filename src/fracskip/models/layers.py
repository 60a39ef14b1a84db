"""Plain layers in the place of modules that compute more than one, or compute their weights."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fracskip.errors import ConfigError

KINDS: dict[str, type[nn.Module]] = {
    "conv2d": nn.Conv2d,
    "linear": nn.Linear,
    "batch_norm": _BatchNorm,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def copy_of(net: nn.Module, shared: bool = False) -> nn.Module:
    """A copy of a network.

    Args:
        net: The network.
        shared: Whether the copy has the same parameters and buffers instead of its own.

    Raises:
        ConfigError: if something in it can't be copied.
    """
    # Weights that hooks compute anew are no parameters, and torch copies none of those.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    }
    if shared:
        memo.update((id(value), value) for value in (*net.parameters(), *net.buffers()))
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:  # what it holds besides may be anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(net).__name__} can't be copied ({type(error).__name__}: {reason}): take what "
            "is no parameter, buffer or module off it first"
        ) from error


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does more, or something else, than its class's forward."""
    return "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)


def without_hooks(module: nn.Module) -> None:
    """Takes a module's forward hooks and a forward of its own off."""
    vars(module).pop("forward", None)
    for name in (*_HOOKS, "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
                 "_forward_hooks_always_called"):  # fmt: skip
        getattr(module, name).clear()


def is_plain(module: nn.Module, op: str) -> bool:
    """Whether a module computes what its kind of layer does, from parameters as they are."""
    kind = KINDS[op]
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and not has_hooks(module)
        and not parametrize.is_parametrized(module)
        and isinstance(module.weight, nn.Parameter | None)
        and getattr(module, "padding_mode", "zeros") == "zeros"
    )


def as_made(net: nn.Module) -> bool:
    """Whether a network computes what its classes say: no hooks, patches or computed weights."""
    return not any(
        has_hooks(module)
        or parametrize.is_parametrized(module)
        or getattr(module, "padding_mode", "zeros") != "zeros"
        or any(isinstance(value, Tensor) for value in vars(module).values())
        for module in net.modules()
    )


def make_conv2d(weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> nn.Conv2d:
    """A convolution.

    Args:
        weight: (O, I / groups, kh, kw); a parameter stays the one that it is.
        bias: (O,), or None.
        geometry: stride, padding, dilation and groups.
    """
    given, taken, high, wide = weight.shape
    channels = taken * geometry["groups"]
    layer = nn.Conv2d(
        channels, given, (high, wide), bias=bias is not None, device="meta", **geometry
    )
    _hold(layer, weight=weight, bias=bias)
    return layer


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with weights (O, I) and offsets (O,)."""
    given, taken = weight.shape
    layer = nn.Linear(taken, given, bias=bias is not None, device="meta")
    _hold(layer, weight=weight, bias=bias)
    return layer


def make_batch_norm(
    dims: int, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> nn.Module:
    """A BatchNorm of values with so many dimensions, the images' included, in evaluation mode."""
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dims]
    norm: nn.Module = kind(len(mean), eps, affine=weight is not None, device=mean.device)
    _hold(norm, weight=weight, bias=bias)
    norm.running_mean, norm.running_var = mean, var
    return norm


def _hold(layer: nn.Module, **tensors: Tensor | None) -> None:
    """Gives a layer its parameters and puts it into evaluation mode."""
    for name, value in tensors.items():
        if value is not None and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value.detach().clone())
        setattr(layer, name, value)
    layer.eval()


def take_over(new: nn.Module, old: nn.Module, used: Collection[str] = ()) -> nn.Module:
    """Gives a layer what else its predecessor held, so that no part of a state is lost.

    Args:
        new: The layer.
        old: The module whose place it takes.
        used: Names in the old one of what the new one has no use for.
    """
    for name, value in old.named_parameters(recurse=False):
        if name not in used and not hasattr(new, name):
            new.register_parameter(name, value)
    for name, held in old.named_buffers(recurse=False):
        if name not in used and not hasattr(new, name):
            new.register_buffer(name, held, name not in old._non_persistent_buffers_set)
    for name, child in old.named_children():
        known = name in used or name == "parametrizations" or hasattr(new, name)
        if not known and len(child.state_dict()):
            new.add_module(name, child)
    return new
