"""Plans: what is impossible is refused, with the reason."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from fracskip.runtime.residual import ResidualPlan
from hypothesis import given
from hypothesis import strategies as st

from fracskip.errors import BundleError
from fracskip.runtime.bundle import parse_bundle
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

CONV = {"in": 3, "out": 3, "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}
POOL = {"op": "maxpool", "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}


def at(path: str, value: Any) -> Callable[[Any], None]:
    """Sets one entry of a plan."""

    def change(tree: Any) -> None:
        *way, last = [int(word) if word.isdecimal() else word for word in path.split(".")]
        for word in way:
            tree = tree[word]
        tree[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("colour", 1), "unknown key 'colour'"),
        (at("network.blocks.0.colour", 1), "unknown key 'network.blocks.0.colour'"),
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
        (at("network.blocks.1.options", ["8"]), "gated block block1 must have the network's"),
        (at("network.blocks.0.options", ["4", "8"]), "ungated block block0 must have one option"),
        (at("network.blocks.0.options", ["skip"]), "executes nothing"),
        (at("network.blocks.1.name", "block0"), "two blocks have one name"),
        (at("network.blocks", []), "network.blocks: "),
        (at("network.blocks.0.branch", []), "network.blocks.0.branch: "),
        (at("network.stem", []), "network.stem: "),
        (at("network.stem", [POOL]), "the stem must begin with a convolution"),
        (at("network.stem.0.op", "sum"), "network.stem.0: "),
        (at("network.stem.0.in", 4), "stem 0 takes 4 channels, it gets 3"),
        (at("network.stem.0.kernel", [3]), "network.stem.0.conv.kernel"),
        (at("network.stem.0.kernel", [30, 3]), "a kernel of (30, 3) does not fit"),
        (at("network.stem.0.stride", [0, 1]), "stride"),
        (at("network.stem.0.padding", [-1, 1]), "padding"),
        (at("network.stem.0.padding", [20_000, 20_000]), "activations of more than 1 GiB"),
        (
            lambda tree: tree["network"]["stem"].append({**POOL, "padding": [2, 2]}),
            "a max pool's padding is at most half of its kernel",
        ),
        (at("network.blocks.0.branch.1.in", 4), "block block0 takes 4 channels, it gets 3"),
        (at("network.blocks.0.branch.1.out", 4), "the branch ends with 4 channels of (8, 9)"),
        (at("network.blocks.0.shortcut", {**CONV, "out": 5}), "the shortcut with 5 of (8, 9)"),
        (at("network.blocks.0.shortcut", {**CONV, "in": 5}), "the shortcut of block0 takes 5"),
        (at("network.classes", 0), "network.classes: "),
        (at("network.classes", 2**40), "network.classes: "),
        (at("image.mean", [0.5]), "mean and std need 3 values each"),
        (at("image.size", [4, 4]), "image.size"),
        (at("image.std", [0, 1, 1]), "image.std"),
        (at("target", 2), "target: "),
        (at("cost.blocks", []), "cost does not list the network's blocks"),
        (at("cost.head_macs", -1), "MACs are 0 to 2^53"),
        (at("cost.head_macs", 2**53 + 1), "MACs are 0 to 2^53"),
        (at("cost.blocks.0.branch_macs", -1), "MACs are 0 to 2^53"),
        (at("cost.blocks.0.fixed_bits", 0), "what is fixed has 1 to 32 bits"),
        (at("cost.blocks.0.gated", True), "cost does not list the network's blocks"),
    ],
)
def test_plans_that_are_refused(change: Callable[[Any], Any], message: str) -> None:
    text = refusal(change)
    assert text.startswith("x.fsk describes no network: ")
    assert message in text


def test_too_many_blocks() -> None:
    def change(tree: Any) -> None:
        block = {**tree["network"]["blocks"][0], "shortcut": None}
        tree["network"]["blocks"] = [{**block, "name": f"b{index}"} for index in range(4097)]

    assert "network.blocks: " in refusal(change)


def test_numbers_that_are_none() -> None:
    text = json.dumps(TREE).replace('"target": 0.1', '"target": 1e999')
    with pytest.raises(ValueError, match="target"):
        ResidualPlan.model_validate_json(text)


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
    free = ("name", "source", "data_name", "class_names", "mean", "std", "target", "cost")
    # Another size of image, or a stem that pads less or steps further: still a network.
    smaller = "stem" in place and ("padding" in place or "stride" in place)
    free_to_change = smaller or "size" in place or any(word in free for word in place)
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
    with pytest.raises(BundleError):
        parse_bundle(sealed(tree))


# -- what follows from it -------------------------------------------------------------------------


def test_stages_begin_with_projections() -> None:
    plan = random_plan(widths=(4, 8, 16), depth=2)
    assert plan.stages == (0, 0, 1, 1, 2, 2)
    assert plan.tensor_table["stream.steps"].shape == (3,)
    # A bottleneck's first block widens, so it projects.
    assert random_plan(blocks="bottleneck", widths=(4, 8), depth=2).stages == (1, 1, 2, 2)


def test_the_tensors_of_a_plan() -> None:
    plan = random_plan(widths=(4, 8), depth=1, options=["skip", 4, 12], gate_width=6)
    table = plan.tensor_table
    assert {name: spec.shape for name, spec in table.items() if name.startswith("blocks.1")} == {
        "blocks.1.4.0.weight": (8, 3, 3, 4),
        "blocks.1.4.0.scale": (8,),
        "blocks.1.4.0.bias": (8,),
        "blocks.1.4.1.weight": (8, 3, 3, 8),
        "blocks.1.4.1.scale": (8,),
        "blocks.1.4.1.bias": (8,),
        "blocks.1.4.input": (1,),
        "blocks.1.12.0.weight": (8, 3, 3, 4),
        "blocks.1.12.0.bias": (8,),
        "blocks.1.12.1.weight": (8, 3, 3, 8),
        "blocks.1.12.1.bias": (8,),
        "blocks.1.shortcut.weight": (8, 1, 1, 4),
        "blocks.1.shortcut.scale": (8,),
        "blocks.1.shortcut.bias": (8,),
    }
    assert table["blocks.1.4.0.weight"].dtype == "I8"
    assert table["blocks.1.4.0.weight"].largest == 7
    assert table["blocks.1.12.0.weight"].dtype == "F32"
    assert {name: spec.shape for name, spec in table.items() if name.startswith("gate")} == {
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
    assert floating["blocks.1.shortcut.weight"].dtype == "F32"
    assert "blocks.1.shortcut.scale" not in floating
    assert not floating["blocks.1.8.input"].optional
