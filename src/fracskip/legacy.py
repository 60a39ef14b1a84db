"""What files of older versions say, in today's words: the only place that knows the old ones.

Of each kind of file there is a table, and a function that takes what was read (JSON-like values,
which may hold anything) and gives what is read today; what it does not know it leaves for today's
readers to refuse. What was given is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dotted keys: what they are called today; None where nothing has taken their place.
Table = Mapping[str, str | None]
# Dotted keys: what some of their values are called today.
Values = Mapping[str, Mapping[str, str]]

RECIPE: Table = {
    "runtime.capture": None,  # steps as CUDA graphs
}
GATE: Values = {"gate.output": {"harm": "sensitivity"}}
# Of a bundle's parts: the programs whose windows a version may write differently.
PROGRAMS = ("branch", "shortcut", "after")
# Of checkpoints before version 2: what their `spec` held of today's `operating_points`.
OPERATING: Table = {
    "target": "target",
    "lean": "multiplier",  # its negative
    "curve": "multiplier_curve",  # (cost, lean) pairs
    "cascade": "cascade",
}


def recipe(tree: Any) -> tuple[Any, list[str]]:
    """A recipe as it would be written today, and what its user should know of the difference.

    Args:
        tree: A recipe's tables; what is no dictionary is given back.

    >>> recipe({"gate": {"output": "harm"}, "runtime": {"compile": True, "capture": True}})[0]
    {'gate': {'output': 'sensitivity'}, 'runtime': {'compile': True}}
    >>> recipe({"runtime": {"capture": True}})[1]
    ['runtime.capture does nothing any more: leave it out']
    """
    tree, notes = translated(tree, RECIPE)
    return _with_ends(revalued(tree, GATE)), notes


def checkpoint(meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's metadata, with what the network is apart from how it is operated.

    >>> old = {"spec": {"gate": {"output": "harm"}, "target": 0.1, "lean": -3.0}}
    >>> checkpoint(old)["spec"], checkpoint(old)["operating_points"]
    ({'gate': {'output': 'sensitivity'}}, {'target': 0.1, 'multiplier': 3.0})
    """
    spec = meta.get("spec")
    if "operating_points" in meta or not isinstance(spec, dict):
        return meta
    points = operating_points({key: spec[key] for key in OPERATING if key in spec})
    spec = revalued({key: spec[key] for key in spec if key not in OPERATING}, GATE)
    return {**meta, "spec": _with_ends(spec), "operating_points": points}


def bundle(plan: Any) -> Any:
    """A bundle's plan, whose windows had one padding for both of their sides until version 3.

    >>> pool = {"op": "pool", "padding": [1, 0]}
    >>> new = bundle({"version": 3, "network": {"parts": [{"branch": [pool]}]}})
    >>> new["version"], new["network"]["parts"][0]["branch"][0]["padding"]
    (4, [1, 0, 1, 0])
    """
    if not isinstance(plan, dict) or plan.get("version") != 3:
        return plan
    network = _under(plan, ["network"])
    parts = network.get("parts")
    if isinstance(parts, list):
        found = [
            {**part, **{key: _two_sided(part[key]) for key in PROGRAMS if key in part}}
            if isinstance(part, dict)
            else part
            for part in parts
        ]
        plan = {**plan, "network": {**network, "parts": found}}
    return {**plan, "version": 4}


def _two_sided(program: Any) -> Any:
    """A program whose paddings (height, width) are (top, left, bottom, right)."""
    if not isinstance(program, list):
        return program
    return [
        {**op, "padding": [*op["padding"], *op["padding"]]}
        if isinstance(op, dict) and isinstance(op.get("padding"), list)
        else op
        for op in program
    ]


def first_block_in_stem(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint's first block has no part of its own, but belongs to the stem.

    So it was in int8 streams of traced networks, whose blocks were found by structure.
    """
    spec = meta.get("spec")
    if "operating_points" in meta or not isinstance(spec, dict):
        return False
    quant = _with_ends(spec).get("quant")
    blocks = _under(spec, ["model"]).get("blocks")
    traced = isinstance(quant, dict) and quant.get("stem") != "full"
    return traced and quant.get("stream") == "int8" and not blocks


def operating_points(tree: dict[str, Any]) -> dict[str, Any]:
    """Operating points that were told by leans, which are the negatives of multipliers."""
    found = {OPERATING[key] or key: value for key, value in tree.items()}
    if "multiplier" in found:
        found["multiplier"] = _negated(found["multiplier"])
    if isinstance(curve := found.get("multiplier_curve"), list | tuple):
        found["multiplier_curve"] = [
            [pair[0], _negated(pair[1])] if isinstance(pair, list | tuple) and len(pair) == 2
            else pair
            for pair in curve
        ]  # fmt: skip
    return found


def run_record(tree: dict[str, Any]) -> dict[str, Any]:
    """A run's record (`run.json`), with the operating points that it ended with."""
    if "operating_points" in tree:
        return tree
    held = {key: tree[key] for key in OPERATING if key in tree}
    rest = {key: tree[key] for key in tree if key not in OPERATING}
    return {**rest, "operating_points": operating_points(held)}


def training_state(meta: dict[str, Any]) -> dict[str, Any]:
    """A training state's metadata: where a run stands that an older version began."""
    position = meta.get("position")
    if not isinstance(position, dict) or "operating_points" in position:
        return meta
    state = dict(position.get("stage_state", {}))
    held = {key: state.pop(key) for key in OPERATING if key in state}
    points = operating_points(held)
    if "price" in state and "multiplier" in points:
        state["multiplier"] = points["multiplier"]
    if "trust" in state:
        state["kept"] = {"images": state.pop("trust"), "blocks": state.pop("block_trust", 1.0)}
    return {**meta, "position": {**position, "stage_state": state, "operating_points": points}}


def _negated(value: Any) -> Any:
    """Minus a number, and 0.0 rather than -0.0."""
    return 0.0 - value if isinstance(value, int | float) else value


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


def revalued(tree: Any, table: Values) -> Any:
    """A tree with today's names of values.

    >>> revalued({"a": {"b": "old"}}, {"a.b": {"old": "new"}})
    {'a': {'b': 'new'}}
    """
    for dotted, names in table.items():
        *path, key = dotted.split(".")
        holder = _under(tree, path)
        value = holder.get(key)
        if isinstance(value, str) and value in names:
            tree = _replaced(tree, path, {**holder, key: names[value]})
    return tree


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
