"""What files of older versions say, in today's words: the only place that knows the old ones.

Of each kind of file there is a table, and a function that takes what was read (JSON-like values,
which may hold anything) and gives what is read today; what it does not know it leaves for today's
readers to refuse. What was given is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Dotted keys: what they are called today; None where nothing has taken their place.
Table = Mapping[str, str | None]
# Dotted keys: what some of their values are called today.
Values = Mapping[str, Mapping[str, str]]

RECIPE: Table = {
    "runtime.capture": None,  # steps as CUDA graphs
    "backbone.depth_order": "backbone.depth_sampling",
    "gates.path": "gates.allocation",
    "gates.erase": "gates.cutout",
    "gates.trusts": "gates.shrinkage",  # one minus each
    "gates.block_trusts": "gates.block_shrinkage",  # likewise
    "joint.paths": "joint.allocation",
    "joint.lean_rate": "joint.multiplier_rate",
    "joint.anchor_rate": "joint.uniform_rate",
    "joint.looks": "joint.members",
}
SHRINKAGES = ("gates.shrinkage", "gates.block_shrinkage")
SPEC_VALUES: Values = {
    "gate.output": {"harm": "sensitivity"},
    "quant.scheme": {"modern": "lsq"},
    "quant.weights": {"own": "per_option"},
}
# Under the keys of their time.
RECIPE_VALUES: Values = {
    **SPEC_VALUES,
    "options": {"cpu": "skip8"},
    "backbone.depth_order": {"depth": "stochastic", "harm": "elastic"},
    "gates.label": {"harm": "sensitivity"},
    "gates.path": {"own": "chosen"},
    "joint.paths": {"each": "image", "shared": "batch"},
    "joint.decisions": {"each": "dynamic", "alike": "static"},
}
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

    >>> recipe({"gates": {"label": "harm", "trusts": [0.25, 1.0]}, "joint": {"looks": 2}})
    ({'gates': {'label': 'sensitivity', 'shrinkage': [0.75, 0.0]}, 'joint': {'members': 2}}, [])
    >>> recipe({"runtime": {"capture": True}})[1]
    ['runtime.capture does nothing any more: leave it out']
    """
    given = {dotted for dotted in SHRINKAGES if _has(tree, dotted)}
    tree, notes = translated(revalued(tree, RECIPE_VALUES), RECIPE)
    for dotted in SHRINKAGES:
        if dotted not in given:
            tree = _applied(tree, dotted, _complements)
    return _with_ends(tree), notes


def checkpoint(meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's metadata; since version 2, how a network is operated is not in its spec.

    >>> old = {"spec": {"gate": {"output": "harm"}, "target": 0.1, "lean": -3.0}}
    >>> checkpoint(old)["spec"], checkpoint(old)["operating_points"]
    ({'gate': {'output': 'sensitivity'}}, {'target': 0.1, 'multiplier': 3.0})
    """
    spec = meta.get("spec")
    if not isinstance(spec, dict):
        return meta
    if "operating_points" in meta:
        return {**meta, "spec": revalued(spec, SPEC_VALUES)}
    points = operating_points({key: spec[key] for key in OPERATING if key in spec})
    spec = revalued({key: spec[key] for key in spec if key not in OPERATING}, SPEC_VALUES)
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


def record(tree: Any) -> Any:
    """A record of any schema whose keys had other names in version 1.

    >>> record({"schema": "fracskip.sweep/1", "points": [{"cp": 0.1, "second_looks": 0.2}]})
    {'schema': 'fracskip.sweep/2', 'points': [{'cp': 0.1, 'escalation_rate': 0.2}]}
    """
    if not isinstance(tree, dict):
        return tree
    name, _, version = str(tree.get("schema")).partition("/")
    if version != "1" or name not in RECORDS:
        return tree
    return RECORDS[name]({**tree, "schema": f"{name}/2"})


def _evaluation(tree: dict[str, Any]) -> dict[str, Any]:
    tree = _renamed(revalued(tree, RECORD_VALUES), EVALUATION)
    examples = tree.get("examples")
    if isinstance(examples, dict):
        rows = {key: _each(rows, EXAMPLE) for key, rows in examples.items()}
        tree["examples"] = _renamed(rows, EXAMPLES)
    return tree


def _with_points(keys: Mapping[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Of records whose `points` have other keys, and `as_trained` if they have it."""

    def points_of(tree: dict[str, Any]) -> dict[str, Any]:
        tree = revalued(tree, RECORD_VALUES)
        found = {key: _each(tree[key], keys) for key in ("points",) if key in tree}
        if isinstance(tree.get("as_trained"), dict):
            found["as_trained"] = _renamed(tree["as_trained"], keys)
        return {**tree, **found}

    return points_of


def _run(tree: dict[str, Any]) -> dict[str, Any]:
    if "operating_points" not in tree:
        held = {key: tree[key] for key in OPERATING if key in tree}
        tree = {key: tree[key] for key in tree if key not in OPERATING}
        tree["operating_points"] = operating_points(held)
    if isinstance(tree.get("epochs"), list):
        tree = {**tree, "epochs": [run_event(event) for event in tree["epochs"]]}
    return _of_run(tree)


def _of_run(tree: dict[str, Any]) -> dict[str, Any]:
    """What a run's record and the events of its log have in common."""
    tree = revalued(tree, {"norms": {"paths": "decisions"}})
    if "recipe" in tree:
        tree = {**tree, "recipe": recipe(tree["recipe"])[0]}
    return {**tree, "test": record(tree["test"])} if "test" in tree else tree


def run_event(event: Any) -> Any:
    """An event of a run's log.

    >>> run_event({"event": "epoch", "stage": "gates", "accuracy": 0.9, "path": [2, 1]})
    {'event': 'epoch', 'stage': 'gates', 'agreement': 0.9, 'allocation': [2, 1]}
    """
    if not isinstance(event, dict):
        return event
    if event.get("stage") == "gates":
        event = _renamed(event, {"accuracy": "agreement"})
    if "lean" in event:
        held = {key: event[key] for key in OPERATING if key in event}
        rest = {key: event[key] for key in event if key not in OPERATING}
        points = operating_points(held)
        event = {
            **rest,
            **({"operating_points": points} if event.get("event") == "end" else points),
        }
    return _of_run(_stage_state(event))


def _stage_state(state: dict[str, Any]) -> dict[str, Any]:
    """What a stage of training adds to a run's state, and to the events of its epochs."""
    state = _renamed(state, {"path": "allocation"})
    if "trust" in state:
        state["kept"] = {"images": state.pop("trust"), "blocks": state.pop("block_trust", 1.0)}
    if isinstance(kept := state.pop("kept", None), dict):
        state["shrinkage"] = {key: _complement(share) for key, share in kept.items()}
    return state


def training_state(meta: dict[str, Any]) -> dict[str, Any]:
    """A training state's metadata: where a run stands that an older version began."""
    position = meta.get("position")
    if not isinstance(position, dict):
        return meta
    state = _stage_state(_under(position, ["stage_state"]))
    if "operating_points" in position:
        return {**meta, "position": {**position, "stage_state": state}}
    held = {key: state.pop(key) for key in OPERATING if key in state}
    points = operating_points(held)
    if "price" in state and "multiplier" in points:
        state["multiplier"] = points["multiplier"]
    return {**meta, "position": {**position, "stage_state": state, "operating_points": points}}


# What the records of version 1 called otherwise.
RECORD_VALUES: Values = {"checkpoint.quant": {"modern": "lsq"}}
EVALUATION = {"second_looks": "escalation_rate"}
EXAMPLES = {"easiest": "cheapest", "hardest": "dearest"}
EXAMPLE = {"path": "allocation", "first_path": "first_allocation"}
CONTROLS = {
    **EVALUATION,
    "cp_of_the_look_that_decides": "cp_of_the_member_that_answers",
    "dealt_to_other_images": "permuted_decisions",
    "drawn_by_each_blocks_shares": "random_decisions",
    "frozen_at_each_blocks_majority": "static_allocation",
    "second_looks_by_lot": "random_escalation",
    "in_one_look": "single_member",
}
RECORDS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "fracskip.evaluation": _evaluation,
    "fracskip.sweep": _with_points(EVALUATION),
    "fracskip.controls": _with_points(CONTROLS),
    "fracskip.allocation": _with_points({"path": "allocation"}),
    "fracskip.run": _run,
}


def _each(rows: Any, keys: Mapping[str, str]) -> Any:
    """A list of dictionaries under today's keys."""
    if not isinstance(rows, list):
        return rows
    return [_renamed(row, keys) if isinstance(row, dict) else row for row in rows]


def _renamed(tree: dict[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A dictionary under today's keys, in the same order."""
    return {keys.get(key, key): value for key, value in tree.items()}


def _complement(share: Any) -> Any:
    """One minus a share: 0.9 for 0.1, not what floats make of it."""
    return round(1 - share, 12) if isinstance(share, int | float) else share


def _complements(shares: Any) -> Any:
    """Of a list."""
    return [_complement(each) for each in shares] if isinstance(shares, list | tuple) else shares


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

    What means the same under another key is not worth a word; what does nothing any more is.

    Args:
        tree: Dictionaries in dictionaries.
        table: The old keys. Where both keys are given, the old one stays, to be refused: which of
            them is meant?

    >>> translated({"a": {"b": 1}}, {"a.b": "c.d"})
    ({'a': {}, 'c': {'d': 1}}, [])
    """
    notes = []
    for old, new in table.items():
        *path, key = old.split(".")
        if key not in (holder := _under(tree, path)) or (new is not None and _has(tree, new)):
            continue
        value = holder[key]
        tree = _replaced(tree, path, {k: v for k, v in holder.items() if k != key})
        if new is not None:
            *path, key = new.split(".")
            tree = _replaced(tree, path, {**_under(tree, path), key: value})
        elif value:  # what asked for nothing loses nothing
            notes.append(f"{old} does nothing any more: leave it out")
    return tree, notes


def _has(tree: Any, dotted: str) -> bool:
    """Whether there is such a key."""
    *path, key = dotted.split(".")
    return key in _under(tree, path)


def _applied(tree: Any, dotted: str, change: Callable[[Any], Any]) -> Any:
    """A tree with another value under a key, where there is one."""
    *path, key = dotted.split(".")
    if not _has(tree, dotted):
        return tree
    holder = _under(tree, path)
    return _replaced(tree, path, {**holder, key: change(holder[key])})


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
