"""A plain network's weights, as torch, torchvision, timm or anybody's training leaves them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

# What DataParallel, torch.compile and training scripts put before a network's own names.
WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model.")
MAX_WRAPPERS = 8  # around one another


def unwrapped(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Tensors without the wrappers that all their names begin with, and those wrappers.

    As they are if a name is one of the network's own, or none is without the wrappers.
    """
    prefix = ""
    for _ in range(MAX_WRAPPERS + 1):
        if any(name[len(prefix) :] in own for name in tensors):
            return {name[len(prefix) :]: value for name, value in tensors.items()}, prefix
        for wrapper in WRAPPERS:
            if all(name.startswith(prefix + wrapper) for name in tensors):
                prefix += wrapper
                break
        else:
            break
    return tensors, ""


def classes_in(
    tensors: Mapping[str, Tensor], few: Mapping[str, Tensor], more: Mapping[str, Tensor]
) -> int | None:
    """The number of classes of a file, by the last tensor that differs with their number.

    Args:
        tensors: The file's.
        few: The state of the model with some number of classes.
        more: With another.
    """
    for name in reversed(list(few)):
        value = tensors.get(name)
        if few[name].shape != more[name].shape and value is not None and value.dim():
            return len(value)
    return None


def other_classes(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """The last linear layer, and its outputs in the tensors and in the module, where they differ.

    None if they agree, or something else about the layer differs too.
    """
    linear = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        return None
    name, part = linear[-1]
    weight, ours = tensors.get(f"{name}.weight"), part.out_features
    if weight is None or weight.dim() != 2 or weight.shape[1] != part.in_features:
        return None
    theirs = len(weight)
    bias = tensors.get(f"{name}.bias")
    if theirs == ours or (bias is None) != (part.bias is None):
        return None
    return (name, theirs, ours) if bias is None or bias.shape == (theirs,) else None
