"""Cascades' bundles: what is written is read, weights are stored once, anything else is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fracskip.errors import BundleError, ConfigError
from fracskip.runtime.bundle import Bundle, encode_container, open_container, parse_bundle
from fracskip.runtime.cascade_bundle import (
    CascadeBundle,
    cascade_of,
    parse_any,
    read_any,
    write_cascade,
)
from support.random_bundle import random_bundle
from support.small_cascades import member, networks, points, small_cascade

Tree = dict[str, Any]


def test_a_cascade_is_read_as_it_was_written(tmp_path: Any) -> None:
    given = networks((12, 12), (16, 16))
    found = cascade_of(given, points([member(0, 1e6), member(1, 4e6)]))
    assert write_cascade(tmp_path / "x.fsk", found) == found.digest
    again = read_any(tmp_path / "x.fsk")
    assert isinstance(again, CascadeBundle)
    assert again.plan == found.plan
    assert again.plan.image.size == (16, 16)
    for network, own in zip(again.networks, given, strict=True):
        assert network.plan == own.plan
        assert network.tensors.keys() == own.tensors.keys()
        for name, value in own.tensors.items():
            np.testing.assert_array_equal(network.tensors[name], value)


def test_a_network_is_read_as_a_network() -> None:
    assert isinstance(parse_any(random_bundle(0)), Bundle)


def test_weights_that_two_networks_share_are_stored_once() -> None:
    """The same network, with steps of its own: its weights take no place the second time."""
    one, other = networks((16, 16))[0], networks((16, 16), (20, 20))[1]
    own = {
        name: value if name.endswith(".weight") else np.float32(1.01) * value
        for name, value in one.tensors.items()
    }
    twin = Bundle(
        one.plan, {**own, "parts.1.8.0.weight": one.tensors["parts.1.8.0.weight"][::-1]}, "", b""
    )
    pair = cascade_of([one, twin], points([member(0, 1e6), member(1, 4e6)]))
    assert pair.plan.weights_of == (None, 0)
    stored = open_container(pair.data, "x").tensors
    weights = {name for name in own if name.endswith(".weight")}
    assert {f"1.{name}" for name in weights} & stored.keys() == {"1.parts.1.8.0.weight"}
    for name, value in twin.tensors.items():
        np.testing.assert_array_equal(pair.networks[1].tensors[name], value)
    apart = cascade_of([one, other], points([member(0, 1e6), member(1, 4e6)]))
    assert apart.plan.weights_of == (None, None)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"classes": 4}, "network 1 .* has the classes .*the same classes in the same order"),
        ({"channels": 1}, "images of the same channels"),
        ({"image": (8, 20)}, "no network takes images of 16x20: one of them must be the largest"),
    ],
)
def test_networks_that_do_not_go_together_are_refused(others: Tree, message: str) -> None:
    first = parse_bundle(random_bundle(0, options=(8,), first=8, ends=8))
    second = parse_bundle(random_bundle(1, **{"options": (8,), "first": 8, "ends": 8, **others}))
    with pytest.raises(ConfigError, match=message):
        cascade_of([first, second], points([member(0, 1e6), member(1, 4e6)]))


def changed(change: Callable[[Tree], None]) -> bytes:
    """A cascade's file with another plan, sealed again."""
    container = open_container(small_cascade().data, "x")
    tree = json.loads(container.text)
    change(tree)
    return encode_container(json.dumps(tree), container.tensors)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update(version=2),
            "version 2; this fracskip reads 'fracskip.cascade' version 1",
        ),
        (lambda t: t.pop("score"), "score"),
        (lambda t: t.update(extra=1), "extra"),
        (lambda t: t.update(score="luck"), "score"),
        (lambda t: t.update(averaged=1), "leaves something out|averaged"),
        (lambda t: t["points"][2].update(thresholds=[float("nan")]), "NaN|nan|finite"),
        (lambda t: t["points"][2].update(thresholds=[2.0]), "less than or equal to 1"),
        (lambda t: t["points"][2].update(rates=[1.0, 1.5]), "less than or equal to 1"),
        (lambda t: t["points"].pop(0), "each member alone must be a point"),
        (lambda t: t["members"][0].update(budget=0.5), "takes none: leave budget out"),
        (lambda t: t["members"][0].update(budget=float("inf")), "Infinity|finite"),
        (lambda t: t["members"][0].update(network=1), "each network is a member"),
        (lambda t: t["members"][0].update(shares=[[1.0]]), "a share for each option"),
        (lambda t: t["members"][0].update(temperature=0), "greater than 0"),
        (lambda t: t["members"][0].update(quantiles=[0.9, 0.1]), "quantiles must ascend"),
        (lambda t: t.update(weights_of=[None, 1]), "takes weights of 1, no earlier network"),
        (lambda t: t.update(weights_of=[None]), "weights_of names a network"),
        (lambda t: t.update(weights_of=[None, 0]), "network 1 takes no weight of 0"),
        (lambda t: t["networks"].pop(), "weights_of|no network"),
        (lambda t: t["networks"][1].update(class_names=list("abcde")), "same classes"),
    ],
)
def test_damaged_cascades_are_refused(change: Callable[[Tree], None], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        parse_any(changed(change), "x.fsk")
    assert str(caught.value).startswith("x.fsk")
    assert "\n" not in str(caught.value)


def test_tensors_of_no_network_are_refused() -> None:
    container = open_container(small_cascade().data, "x")
    for name in ("2.parts.0.8.0.weight", "weight", "-1.x", "00.x"):
        tensors = {**container.tensors, name: np.zeros(1, np.float32)}
        with pytest.raises(BundleError, match=f"has no network for tensor {name}"):
            parse_any(encode_container(container.text, tensors)[0])


def test_a_changed_byte_is_found() -> None:
    data = bytearray(small_cascade().data)
    data[-1] ^= 1
    with pytest.raises(BundleError, match="does not match its digest"):
        parse_any(bytes(data))


def test_a_cascade_is_no_network() -> None:
    with pytest.raises(BundleError, match=r"'fracskip\.cascade' version 1"):
        parse_bundle(small_cascade().data, "x.fsk")
