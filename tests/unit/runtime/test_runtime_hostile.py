"""Bundles that ask for as much work or memory as they can are refused soon, in one short line."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from fracskip.errors import BundleError
from fracskip.runtime.bundle import parse_bundle
from fracskip.runtime.elements import Activations
from fracskip.runtime.operations import ConvOp, PoolOp, feeders, feeds_levels
from support.hostile_files import (
    HOSTILE_BUNDLES,
    act_op,
    chain,
    conv_op,
    damaged_bundle,
    many_convolutions,
    many_pools,
    pool_op,
    unsealed,
)
from support.random_bundle import random_bundle

# Far more than any takes here, far less than what grows faster than the file.
MOST_SECONDS = 60


def refusal(data: bytes) -> str:
    began = time.process_time()
    with pytest.raises(BundleError) as caught:
        parse_bundle(data, "x.fsk")
    assert time.process_time() - began < MOST_SECONDS
    said = str(caught.value)
    assert said.startswith("x.fsk")
    assert "\n" not in said
    assert len(said) <= 2000
    return said


@pytest.mark.parametrize("size", [50_000, 1_000_000])
@pytest.mark.parametrize("name", HOSTILE_BUNDLES)
def test_hostile_bundles_are_refused(name: str, size: int) -> None:
    refusal(HOSTILE_BUNDLES[name](random.Random(0), size))


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (
            "many operations",
            300_000,
            "its plan lacks tensor parts.2.full.1.weight; export it again",
        ),
        ("many options", 300_000, "its plan lacks tensor parts.1.2.0.weight; export it again"),
        ("many tensors", 100_000, "its plan lacks tensor parts.0.full.1.weight; export it again"),
        ("many errors", 400_000, "class_names.0: Input should be a valid string (given: 0)"),
        ("many unknown keys", 50_000, "3,571 of its keys and values are wrong, too many to list"),
        ("many unknown keys", 70_000, "a damaged plan (more than 4,096 keys in one object)"),
        ("lists in the plan", 700_000, "a damaged plan (more than 262,144 values)"),
        ("lists in the header", 4_000_000, "a damaged header (more than 524,288 values)"),
        ("deep plan", 50_000, "a damaged plan (nested too deeply)"),
    ],
)
def test_what_is_said_of_them(name: str, size: int, reason: str) -> None:
    assert reason in refusal(HOSTILE_BUNDLES[name](random.Random(0), size))


@pytest.mark.parametrize("data", [many_pools(4094), many_convolutions(300)], ids=["pools", "convs"])
def test_long_chains_are_sound(data: bytes) -> None:
    began = time.process_time()
    assert parse_bundle(data).plan.gated_names == ("block0",)
    assert time.process_time() - began < MOST_SECONDS


def test_what_feeds_levels_is_found_in_one_pass() -> None:
    """As asked for one by one, also where a value is taken twice, or by several."""

    def conv(taken: int, act: Any = "relu") -> ConvOp:
        return ConvOp.model_validate_json(json.dumps(conv_op(taken, (1, 1), act)))

    pool = PoolOp.model_validate_json(json.dumps(pool_op(3)))
    branch = [conv(0), conv(1), conv(2, "silu"), pool, conv(3), conv(5), conv(5), conv(4)]
    assert feeders(branch) == (None, branch[0], branch[1], None, None, None, None, None)
    assert [feeds_levels(branch, k) for k in range(len(branch))] == list(feeders(branch))


# -- activations ----------------------------------------------------------------------------------


def test_activations_are_added_up() -> None:
    values = Activations()
    for _ in range(4):
        assert values.bounded(1, (2**14, 2**14), "it") == (1, (2**14, 2**14))  # 1 GiB
    with pytest.raises(ValueError, match="all activations together take more than 4 GiB"):
        values.bounded(1, (1, 1), "it")
    with pytest.raises(ValueError, match="it has activations of more than 1 GiB"):
        Activations().bounded(1, (2**14, 2**14 + 1), "it")


def test_a_network_of_more_than_4_gib() -> None:
    wide = [conv_op(0, (1, 2**14)), *(conv_op(k, (2**14, 2**14)) for k in range(1, 6))]
    wide.append(conv_op(6, (2**14, 1)))
    plan = chain(["full"], wide)
    plan["image"]["size"] = [128, 128]
    assert "together take more than 4 GiB" in refusal(unsealed(plan))
    plan["image"]["size"] = [64, 64]
    assert "lacks tensor parts.1.full.0.weight" in refusal(unsealed(plan))


def one_more_in_a_fixed_part(parts: list[Any]) -> None:
    parts[0]["branch"].append(act_op(2))


def one_more_in_a_shortcut(parts: list[Any]) -> None:
    parts[1] |= {"residual": True, "shortcut": [act_op(0)], "shortcut_option": "full"}


@pytest.mark.parametrize(
    ("one_more", "message"),
    [
        (lambda parts: None, "lacks tensor parts.6.full.1.weight"),
        (one_more_in_a_fixed_part, "the network has too many operations"),
        (one_more_in_a_shortcut, "the network has too many operations"),
    ],
    ids=["as many as may be", "fixed part", "shortcut"],
)
def test_operations_times_options_are_bounded(
    one_more: Callable[[list[Any]], None], message: str
) -> None:
    acts, labels = [act_op(k) for k in range(4096)], [str(bits) for bits in range(2, 17)]
    plan = chain(labels, acts, acts, acts, acts, acts[:1092])
    plan["network"]["parts"][0]["branch"] = acts[:2]
    assert 15 * (4 * 4096 + 1092) + 2 + 2 == 2**18  # with the head's
    one_more(plan["network"]["parts"])
    assert message in refusal(unsealed(plan))


# -- damage ---------------------------------------------------------------------------------------


def test_random_damage_with_a_digest_that_fits() -> None:
    """A bundle, or one line: nothing else."""
    draw = random.Random(2)
    sound = [random_bundle(1, widths=(3, 4), depth=1, image=(8, 9)), many_convolutions(3)]
    taken, said = 0, []
    for data, _ in itertools.product(sound, range(40)):
        try:
            parse_bundle(damaged_bundle(draw, data), "x.fsk")
            taken += 1
        except BundleError as error:
            said.append(str(error))
    assert all(line.startswith("x.fsk") and len(line) <= 2000 for line in said)
    assert 0 < taken < 80
