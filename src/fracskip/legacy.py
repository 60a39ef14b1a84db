"""What files written by earlier versions say, in today's words.

The only place that knows old keys. Functions take JSON-like trees as they were read, which may hold
anything, and leave what they do not know for today's readers to refuse.
"""

from __future__ import annotations

from typing import Any


def current_spec(tree: Any) -> Any:
    """A network's spec, of a checkpoint."""
    if not isinstance(tree, dict):
        return tree
    return _with_ends(tree)


def current_recipe(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe."""
    return _with_ends(tree)


def _with_ends(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree of `model` and `quant` that names the widths of stem and head.

    Before they could be named, CIFAR ResNets had both in full where the stream was int8; others had
    them at 8 bits, as today where nothing is named.
    """
    model, quant = tree.get("model", {}), tree.get("quant", {})
    if not (isinstance(model, dict) and isinstance(quant, dict)):
        return tree
    name = model.get("name", "resnet")  # a recipe's default is one of them
    ours = isinstance(name, str) and name.startswith("resnet") and "/" not in name
    if not ours or quant.get("stream") != "int8":
        return tree
    return {**tree, "quant": {"stem": "full", "head": "full", **quant}}
