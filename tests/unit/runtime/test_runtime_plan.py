"""Plans: what is impossible is refused, with the reason."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fracskip.errors import BundleError
from fracskip.runtime.bundle import parse_bundle
from fracskip.runtime.elements import TensorSpec
from fracskip.runtime.plan import Plan
from support.random_bundle import random_bundle, random_plan

DATA = random_bundle(1, widths=(3, 4), depth=2, image=(8, 9))
SIZE = int.from_bytes(DATA[:8], "little")
HEADER = json.loads(DATA[8 : 8 + SIZE])
TREE = json.loads(HEADER["__metadata__"]["fracskip"])


def sealed(tree: Any) -> bytes:
    """A bundle with another plan and the digest that belongs to it."""
    text, body = json.dumps(tree), DATA[8 + SIZE :]
    header = copy.deepcopy(HEADER)
    header.pop("__metadata__")
    total = hashlib.sha256(text.encode() + b"\n" + body)
    for name, item in sorted(header.items()):
        begin, end = item["data_offsets"]
        total.update(f"\n{name} {item['dtype']} {item['shape']} {begin} {end}".encode())
    header["__metadata__"] = {"fracskip": text, "digest": f"sha256:{total.hexdigest()}"}
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


def refusal(change: Callable[[Any], Any]) -> str:
    tree = copy.deepcopy(TREE)
    change(tree)
    with pytest.raises(BundleError) as caught:
        parse_bundle(sealed(tree), "x.fsk")
    return str(caught.value)


def test_the_digest_is_as_documented() -> None:
    assert parse_bundle(sealed(TREE)).plan == parse_bundle(DATA).plan


# -- what it must not say -------------------------------------------------------------------------

POOL = {
    "op": "pool", "in": [1], "kind": "max", "kernel": [3, 3], "stride": [1, 1], "padding": [1] * 4,
    "count_padding": False,
}  # fmt: skip
RELU = {"op": "act", "in": [0], "act": "relu"}


def at(path: str, value: Any) -> Callable[[Any], None]:
    """Sets one entry of a plan."""

    def change(tree: Any) -> None:
        *way, last = [int(word) if word.isdecimal() else word for word in path.split(".")]
        for word in way:
            tree = tree[word]
        tree[last] = value

    return change


def part(index: int, **values: Any) -> Callable[[Any], None]:
    """Sets members of a part: stem, block0, gated block1 to 3 (block2 projects), head."""
    return lambda tree: tree["network"]["parts"][index].update(values)


def op(index: int, position: int, program: str = "branch", **values: Any) -> Callable[[Any], None]:
    """Sets members of an operation."""
    return lambda tree: tree["network"]["parts"][index][program][position].update(values)


def then(index: int, *ops: dict[str, Any]) -> Callable[[Any], None]:
    """Adds operations to a branch."""
    return lambda tree: tree["network"]["parts"][index]["branch"].extend(ops)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("colour", 1), "unknown key 'colour'"),
        (at("network.parts.0.colour", 1), "unknown key 'network.parts.0.colour'"),
        (lambda tree: tree.pop("stream"), "stream is missing"),
        (at("stream", "int4"), "stream: "),
        (at("class_names", ["a"]), "5 classes need as many names, not 1"),
        (at("gate", None), "has a gate if and only if it has several options"),
        (at("gate.width", 0), "gate.width: "),
        (at("gate.width", "6"), "gate.width: "),
        (at("gate.kind", "oracle"), "gate.kind: "),
        (at("options", []), "an option set needs at least one option"),
        (at("options", ["8", "4"]), "must ascend without repeats"),
        (at("options", ["skip", "04", "8", "full"]), "are spelled"),
        (at("options", ["skip", "17"]), "option 17 is unknown"),
        (at("options", "cpu"), "options: "),
        (part(2, options=["8"]), "gated part block1 must have the network's"),
        (part(1, options=["4", "8"]), "part 'block0', which is not gated, executes one option"),
        (part(1, options=["skip", "8"]), "executes one option, never skip"),
        (part(1, options=["skip"]), "executes nothing"),
        (part(1, options=["08"]), "are spelled"),
        (part(1, options=[]), "an option set needs at least one option"),
        (part(2, name="block2"), "two gated parts have one name"),
        (part(2, name=""), "a gated part has a name"),
        (part(2, name="other"), "cost does not list the network's gated parts"),
        (part(2, residual=False), "block1 has no residual sum, so its branch is all there is"),
        (part(0, after=[RELU]), "stem has no residual sum"),
        (part(0, shortcut=[RELU], shortcut_option="8"), "stem has no residual sum"),
        (part(0, skip_is_identity=True), "stem has no residual sum"),
        (part(3, skip_is_identity=True), "has a projection, so skipping it is no identity"),
        (part(2, shortcut_option="8"), "has an option if and only if it computes"),
        (part(3, shortcut_option=None), "has an option if and only if it computes"),
        (part(3, shortcut_option="skip"), "executes nothing"),
        (part(3, shortcut_option="08"), "are spelled"),
        (part(3, shortcut_option="17"), "option 17 is unknown"),
        (part(0, residual=True), "the first and the last part are not gated and have no residual"),
        (lambda tree: tree["network"]["parts"].pop(0), "the first and the last part are not gated"),
        (part(5, residual=True), "the first and the last part are not gated and have no residual"),
        (lambda tree: tree["network"]["parts"].pop(), "the first and the last part are not gated"),
        (op(2, 0, "after", act="relu6"), "block1: in an int8 stream, a ReLU may follow a sum"),
        (op(2, 0, "after", act="none"), "is not 'none'"),
        (part(2, after=[POOL]), "nothing but activations follows a sum"),
        (at("network.parts", []), "network.parts: "),
        (part(1, branch=[]), "network.parts.1.branch: "),
        (op(0, 0, op="sum"), "network.parts.0.branch.0: "),
        (op(0, 0, act="tanh"), "network.parts.0.branch.0.conv.act"),
        (op(0, 0, **{"in": [1]}), "operation 0 takes value 1, which nothing gave yet"),
        (op(1, 1, **{"in": [0]}), "part 1 (block0): nothing uses value 1"),
        (op(0, 0, groups=2), "2 groups do not divide channels (3, 3)"),
        (op(0, 0, channels=[4, 3]), "a convolution takes 4 channels, it gets 3"),
        (op(0, 0, kernel=[3]), "network.parts.0.branch.0.conv.kernel"),
        (op(0, 0, kernel=[30, 3]), "a kernel of (30, 3) does not fit"),
        (op(0, 0, dilation=[5, 1]), "does not fit"),
        (op(0, 0, stride=[0, 1]), "stride"),
        (op(0, 0, padding=[1, 1, -1, 1]), "padding"),
        (op(0, 0, padding=[1, 1]), "padding"),
        (at("version", 3), "padding"),  # which has two
        (op(0, 0, padding=[0, 0, 40_000, 40_000]), "activations of more than 1 GiB"),
        (then(0, {**POOL, "padding": [1, 1, 2, 1]}), "a pool's padding is at most half of its"),
        (then(0, {**POOL, "padding": [1, 1, 1, 2]}), "kernel, unless it is counted"),
        (then(0, {**POOL, "count_padding": True}), "a max pool counts no padding"),
        (op(1, 1, channels=[4, 3]), "a convolution takes 4 channels, it gets 3"),
        (op(1, 1, channels=[3, 4]), "the branch gives (4, (8, 9)), the shortcut (3, (8, 9))"),
        (op(3, 0, "shortcut", channels=[3, 5]), "the shortcut (5, (4, 5))"),
        (
            op(3, 0, "shortcut", channels=[5, 4]),
            "the shortcut of part 3 (block2), operation 0: a convolution takes 5",
        ),
        (at("network.classes", 0), "network.classes: "),
        (at("network.classes", 2**40), "network.classes: "),
        (op(5, 1, channels=[4, 6]), "the last part gives (6, (1, 1)), not 5 logits"),
        (at("image.mean", [0.5]), "mean and std need 3 values each"),
        (at("image.size", [4, 4]), "image.size"),
        (at("image.std", [0, 1, 1]), "image.std"),
        (at("operating_points.target", 2), "operating_points.target: "),
        (at("operating_points.multiplier", 1e39), "operating_points.multiplier: "),
        (at("operating_points.multiplier", "1"), "operating_points.multiplier: "),
        (at("gate.output", "harm"), "gate.output: "),
        (at("target", 0.1), "unknown key 'target'"),
        (at("cost.blocks", []), "cost does not list the network's gated parts"),
        (at("cost.head_macs", -1), "MACs are 0 to 2^53"),
        (at("cost.head_macs", 2**53 + 1), "MACs are 0 to 2^53"),
        (at("cost.blocks.0.branch_macs", -1), "MACs are 0 to 2^53"),
        (at("cost.blocks.0.fixed_bits", 0), "what is fixed has 1 to 32 bits"),
        (at("cost.stem_bits", 0), "what is fixed has 1 to 32 bits"),
        (at("cost.head_bits", 33), "what is fixed has 1 to 32 bits"),
        (at("cost.blocks.0.gated", True), "cost does not list the network's gated parts"),
    ],
)
def test_plans_that_are_refused(change: Callable[[Any], Any], message: str) -> None:
    text = refusal(change)
    assert text.startswith("x.fsk describes no network: ")
    assert message in text


def test_too_many_parts() -> None:
    def change(tree: Any) -> None:
        tree["network"]["parts"] = [tree["network"]["parts"][0]] * 4097

    assert "network.parts: " in refusal(change)


def test_numbers_that_are_none() -> None:
    text = json.dumps(TREE).replace('"target": 0.1', '"target": 1e999')
    with pytest.raises(ValueError, match="target"):
        Plan.model_validate_json(text)


def _places(tree: Any) -> list[list[Any]]:
    """Paths of all entries of a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: list[list[Any]] = []
    for key, value in children:
        found.append([key])
        if isinstance(value, dict | list):
            found += [[key, *rest] for rest in _places(value)]
    return found


PLACES = _places(TREE)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
    | st.lists(st.integers(-1, 5), max_size=3)
)


@given(st.sampled_from(PLACES), VALUES)
def test_any_entry_replaced(place: list[Any], value: Any) -> None:
    """It is read, or refused by a BundleError; nothing else can happen."""
    tree = copy.deepcopy(TREE)
    *way, last = place
    spot = tree
    for word in way:
        spot = spot[word]
    spot[last] = value
    try:
        parse_bundle(sealed(tree))
    except BundleError:
        return
    free = (
        "name",
        "source",
        "data_name",
        "class_names",
        "mean",
        "std",
        "target",
        "multiplier",
        "cost",
    )
    free += ("size", "skip_is_identity", "after", "dilation")
    # A stem that pads less or steps further, a head that steps over nothing: still a network.
    ends = "parts" in place and place[2:3] in ([0], [5])
    free_to_change = ends and ("padding" in place or "stride" in place)
    # Where a stride is 2, one row more may make no difference.
    free_to_change |= place[1:3] == ["parts", 3] and "padding" in place
    free_to_change |= any(word in free for word in place)
    assert free_to_change or spot[last] == eval_in(TREE, place)


def eval_in(tree: Any, place: list[Any]) -> Any:
    for word in place:
        tree = tree[word]
    return tree


@given(st.sampled_from(PLACES))
def test_any_entry_removed(place: list[Any]) -> None:
    tree = copy.deepcopy(TREE)
    *way, last = place
    spot = eval_in(tree, way)
    del spot[last]
    # A sum that no ReLU follows, a block without a gate that is priced at nothing.
    if place[-2:] == ["after", 0] or place == ["cost", "blocks", 0]:
        parse_bundle(sealed(tree))
        return
    with pytest.raises(BundleError):
        parse_bundle(sealed(tree))


# -- what follows from it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "begun"),
    [({"widths": (4, 8, 16)}, [0, 3, 5]), ({"widths": (4, 8), "blocks": "bottleneck"}, [0, 1, 3])],
    ids=["basic", "bottleneck"],  # whose first block widens, so it projects
)
def test_projections_begin_grids(keywords: dict[str, Any], begun: list[int]) -> None:
    """Every part but the last has a step; one whose shortcut is the identity hands it on."""
    plan = random_plan(depth=2, **keywords)
    last = len(plan.network.parts) - 1
    steps = [f"parts.{index}.step" for index in range(last)]
    assert [name for name in plan.tensor_table if name.endswith("step")] == steps

    def fault(first: int) -> str:
        values = {name: np.ones(1) + (index >= first) for index, name in enumerate(steps)}
        return plan.fault(values)

    assert [index for index in range(last) if not fault(index)] == begun


def shapes(table: dict[str, TensorSpec], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in table.items() if name.startswith(prefix)}


def test_the_tensors_of_a_plan() -> None:
    plan = random_plan(widths=(4, 8), depth=1, options=["skip", 4, 12], gate_width=6)
    table = plan.tensor_table
    assert shapes(table, "parts.2.") == {
        "parts.2.4.0.weight": (8, 3, 3, 4),
        "parts.2.4.0.scale": (8,),
        "parts.2.4.0.bias": (8,),
        "parts.2.4.0.input": (1,),
        "parts.2.4.0.zero": (1,),
        "parts.2.4.1.weight": (8, 3, 3, 8),
        "parts.2.4.1.scale": (8,),
        "parts.2.4.1.bias": (8,),
        "parts.2.4.1.input": (1,),
        "parts.2.4.1.zero": (1,),
        "parts.2.12.0.weight": (8, 3, 3, 4),
        "parts.2.12.0.bias": (8,),
        "parts.2.12.1.weight": (8, 3, 3, 8),
        "parts.2.12.1.bias": (8,),
        "parts.2.shortcut.0.weight": (8, 1, 1, 4),
        "parts.2.shortcut.0.scale": (8,),
        "parts.2.shortcut.0.bias": (8,),
        "parts.2.shortcut.0.input": (1,),
        "parts.2.shortcut.0.zero": (1,),
        "parts.2.step": (1,),
        "parts.2.zero": (1,),
    }
    assert table["parts.2.4.0.weight"].dtype == "I8"
    assert table["parts.2.4.0.weight"].largest == 7
    assert table["parts.2.12.0.weight"].dtype == "F32"
    assert shapes(table, "gate") == {
        "gate.embed.0.weight": (6, 4),
        "gate.embed.0.bias": (6,),
        "gate.lstm.weight_ih": (24, 6),
        "gate.lstm.weight_hh": (24, 6),
        "gate.lstm.bias": (24,),
        "gate.out.weight": (3, 6),
        "gate.out.bias": (3,),
        "gate.block_bias": (1, 3),
    }
    floating = random_plan(widths=(4, 8), depth=1, stream="float").tensor_table
    assert floating["parts.2.shortcut.0.weight"].dtype == "F32"
    assert "parts.2.shortcut.0.scale" not in floating
    assert not floating["parts.2.8.0.input"].optional
    assert not shapes(floating, "parts.2.step")


@pytest.mark.parametrize("stream", ["int8", "float"])
def test_ends_execute_at_their_own_option(stream: Literal["int8", "float"]) -> None:
    """At 8 bits they take values on a grid of their own, which the bundle names."""
    keywords: dict[str, Any] = {"widths": (4,), "depth": 2, "stream": stream}
    full = random_plan(**keywords).tensor_table
    for name in ("parts.0.full.0", "parts.3.full.1"):
        assert shapes(full, name).keys() == {f"{name}.weight", f"{name}.bias"}
        assert full[f"{name}.weight"].dtype == "F32"
    narrow = random_plan(ends=8, **keywords).tensor_table
    assert not shapes(narrow, "parts.0.full")
    assert not shapes(narrow, "parts.3.full")
    for name in ("parts.0.8.0", "parts.3.8.1"):
        assert narrow[f"{name}.weight"].dtype == "I8"
        assert not narrow[f"{name}.input"].optional
    assert shapes(narrow, "parts.3.") == {
        "parts.3.8.1.weight": (5, 1, 1, 4),
        "parts.3.8.1.bias": (5,),
        "parts.3.8.1.scale": (5,),
        "parts.3.8.1.input": (1,),
        "parts.3.8.1.zero": (1,),
    }
