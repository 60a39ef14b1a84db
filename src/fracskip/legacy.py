"""What files of older versions say, in today's words: the only place that knows the old ones.

Of each kind of file there is a table, and a function that takes what was read (JSON-like values)
and gives what is read today, and notes for the user. What was given is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dotted keys: what they are called today; None where nothing has taken their place.
Table = Mapping[str, str | None]

RECIPE: Table = {
    "runtime.capture": None,  # steps as CUDA graphs
}


def recipe(tree: Any) -> tuple[Any, list[str]]:
    """A recipe as it would be written today.

    Args:
        tree: A recipe's tables; what is no dictionary is given back.

    >>> recipe({"runtime": {"compile": True, "capture": True}})
    ({'runtime': {'compile': True}}, ['runtime.capture does nothing any more: leave it out'])
    """
    tree, notes = translated(tree, RECIPE)
    return _with_ends(tree), notes


def spec(tree: Any) -> Any:
    """A network's spec, of a checkpoint, as it would be written today."""
    return _with_ends(tree)


def _with_ends(tree: Any) -> Any:
    """A tree of `model` and `quant` that names the widths of stem and head.

    Before they could be named, CIFAR ResNets had both in full where the stream was int8; others had
    them at 8 bits, as today where nothing is named.
    """
    if not isinstance(tree, dict):
        return tree
    model, quant = tree.get("model", {}), tree.get("quant", {})
    if not (isinstance(model, dict) and isinstance(quant, dict)):
        return tree
    name = model.get("name", "resnet")  # a recipe's default is one of them
    ours = isinstance(name, str) and name.startswith("resnet") and "/" not in name
    if not ours or quant.get("stream") != "int8":
        return tree
    return {**tree, "quant": {"stem": "full", "head": "full", **quant}}


def translated(tree: Any, table: Table) -> tuple[Any, list[str]]:
    """Values under today's keys, and what a user should know of it.

    Args:
        tree: Dictionaries in dictionaries.
        table: The old keys. Where both keys are given, the new one's value stays.

    >>> translated({"a": {"b": 1}}, {"a.b": "c.d"})
    ({'a': {}, 'c': {'d': 1}}, ['a.b is called c.d now'])
    """
    notes = []
    for old, new in table.items():
        *path, key = old.split(".")
        if key not in (holder := _under(tree, path)):
            continue
        value = holder[key]
        tree = _replaced(tree, path, {k: v for k, v in holder.items() if k != key})
        if new is not None:
            *path, key = new.split(".")
            tree = _replaced(tree, path, {key: value, **_under(tree, path)})
            notes.append(f"{old} is called {new} now")
        elif value:  # what asked for nothing loses nothing
            notes.append(f"{old} does nothing any more: leave it out")
    return tree, notes


def _under(tree: Any, path: list[str]) -> dict[str, Any]:
    """The dictionary at a path; an empty one where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _replaced(tree: dict[str, Any], path: list[str], value: dict[str, Any]) -> dict[str, Any]:
    """The tree with another dictionary at a path."""
    if not path:
        return value
    inside = _under(tree, path[:1])
    return {**tree, path[0]: _replaced(inside, path[1:], value)}
