"""Bundles: written and read again; whatever is not one is refused, always by a BundleError."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors

from fracskip.errors import BundleError, CheckpointError
from fracskip.runtime.bundle import (
    _fault,
    encode_bundle,
    furthest,
    parse_bundle,
    read_bundle,
    write_bundle,
)
from fracskip.runtime.elements import TensorSpec
from support.hostile_files import Parts, unsealed
from support.random_bundle import random_bundle, random_plan, random_tensors

SMALL: dict[str, Any] = {"widths": (3, 4), "depth": 1, "gate_width": 2, "image": (8, 9)}
DATA = random_bundle(1, **SMALL)
PLAN = random_plan(**SMALL)
HEADER = 8 + int.from_bytes(DATA[:8], "little")
BIAS = "parts.3.full.1.bias"  # of the logits
each_kind = pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"stream": "float", "gate": "feedforward"},
        {"blocks": "bottleneck", "stem7": True, "image": (30, 41), "channels": 1},
        {"options": [8]},
        {"options": ["skip", 2, 7, 9, 16, "full"], "budget_input": True, "first": 3},
        {"first": 8, "ends": 8},
    ],
    ids=str,
)


def rewritten(change: Callable[[dict[str, Any]], Any], data: bytes = DATA) -> bytes:
    """A bundle whose header has been changed; its digest is left as it was."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def refusal(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse_bundle(data, "x.fsk")
    message = str(caught.value)
    assert message.startswith("x.fsk ") or message.startswith("x.fsk: ")
    return message


# -- sound bundles --------------------------------------------------------------------------------


@each_kind
def test_what_is_written_is_read_again(keywords: dict[str, Any], tmp_path: Path) -> None:
    plan = random_plan(**keywords)
    tensors = random_tensors(plan, 2)
    digest = write_bundle(tmp_path / "new" / "x.fsk", plan, tensors)
    found = read_bundle(tmp_path / "new" / "x.fsk")
    assert found.plan == plan
    assert found.digest == digest
    assert digest.startswith("sha256:")
    assert found.data == (tmp_path / "new" / "x.fsk").read_bytes()
    assert found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype
        assert not found.tensors[name].flags.writeable
    assert encode_bundle(found.plan, found.tensors) == (found.data, digest)


@each_kind
def test_other_readers_of_safetensors_can_read_it(keywords: dict[str, Any]) -> None:
    data = random_bundle(1, **keywords)
    tensors = load_tensors(data)
    found = parse_bundle(data).tensors
    assert tensors.keys() == found.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, found[name])


def test_the_bytes_depend_on_nothing_else() -> None:
    assert random_bundle(1, **SMALL) == DATA
    assert random_bundle(2, **SMALL) != DATA


def test_class_names_may_have_any_letters() -> None:
    names = ("naïve", '"', "\\", "猫", "\n")
    plan = PLAN.model_copy(update={"class_names": names})
    data, _ = encode_bundle(plan, random_tensors(plan, 1))
    assert parse_bundle(data).plan.class_names == names


def test_a_foreign_layout_of_the_same_header_is_read(tmp_path: Path) -> None:
    """Another writer may space the header as it likes."""
    assert parse_bundle(rewritten(lambda header: None)).plan == parse_bundle(DATA).plan


# -- damage ---------------------------------------------------------------------------------------


@given(st.integers(0, len(DATA) - 1))
def test_a_bundle_cut_short(length: int) -> None:
    refusal(DATA[:length])


@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_anywhere(bit: int) -> None:
    refusal(_flipped(bit))


@given(st.integers(0, 8 * HEADER - 1))
def test_a_flipped_bit_in_the_header(bit: int) -> None:
    refusal(_flipped(bit))


def _flipped(bit: int) -> bytes:
    data = bytearray(DATA)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_noise(before: bytes, after: bytes) -> None:
    refusal(before)
    refusal(len(before).to_bytes(8, "little") + before + after)
    refusal(DATA + before + b"x")


@given(st.integers(0, HEADER - 8), st.binary(min_size=1, max_size=12))
def test_a_header_written_over(place: int, noise: bytes) -> None:
    data = DATA[: 8 + place] + noise + DATA[8 + place + len(noise) :]
    if data != DATA:
        refusal(data)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists, max_leaves=6))
def test_any_json_in_the_place_of_a_tensors_entry(value: Any) -> None:
    refusal(rewritten(lambda header: header.update({BIAS: value})))
    for key in ("dtype", "shape", "data_offsets"):
        refusal(rewritten(lambda header, key=key: header[BIAS].update({key: value})))
    refusal(rewritten(lambda header: header.update(__metadata__=value)))
    refusal(rewritten(lambda header: header["__metadata__"].update(fracskip=value)))
    refusal(rewritten(lambda header: header["__metadata__"].update(digest=value)))


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{}", b"nul", b"[" * 100_000, b'{"a":1,"a":1}', b'{"__metadata__":{"fracskip":"{}"}}'],
    ids=lambda header: header[:40].decode(),
)
def test_headers_of_another_shape(header: bytes) -> None:
    refusal(len(header).to_bytes(8, "little") + header)


def test_absurd_sizes() -> None:
    for size in (1 << 24, 1 << 40, (1 << 64) - 1):
        assert "no complete safetensors file" in refusal(size.to_bytes(8, "little") + DATA[8:])
    for shape in ([1 << 62, 4], [0], [-1], [5] * 40, [True], [1.0], [10**30]):
        refusal(rewritten(lambda header, shape=shape: header[BIAS].update(shape=shape)))
    for place in ([0, 1 << 62], [-20, 0], [8, 4], [0, 20], [0], [0, 20, 40]):
        refusal(rewritten(lambda header, place=place: header[BIAS].update(data_offsets=place)))


# -- files of another kind ------------------------------------------------------------------------


def test_a_pickle() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert "is a pickle" in refusal(pickle.dumps({"a": [1.5] * 9}, protocol))


def test_a_torch_save() -> None:
    import torch

    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file)
    assert "is a pickle" in refusal(file.getvalue())


def test_a_checkpoint(checkpoint_file: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(checkpoint_file)
    assert f"fracskip export {checkpoint_file} --to FILE.fsk" in str(caught.value)


def test_a_bundle_where_a_checkpoint_is_wanted(tmp_path: Path) -> None:
    from fracskip.checkpoint import load

    (tmp_path / "x.fsk").write_bytes(DATA)
    with pytest.raises(CheckpointError, match=r"is a bundle, not a checkpoint: run it with"):
        load(tmp_path / "x.fsk")


def test_plain_safetensors() -> None:
    from safetensors.numpy import save

    data = save({"w": np.ones(3, np.float32)})
    assert "a plain safetensors file without a plan" in refusal(data)


def test_no_file_and_no_permission(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone.fsk does not exist; give a .fsk file or one of"):
        read_bundle(tmp_path / "gone.fsk")
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "fracskip.other"),
        ("version", 1),
        ("version", 2),
        ("version", 5),
        ("version", "4"),
    ],
)
def test_another_schema_or_version(key: str, value: Any) -> None:
    """Earlier versions are named, with the command that makes the bundle anew."""
    plan = {**json.loads(PLAN.model_dump_json(by_alias=True)), key: value}
    schema, version = plan["schema"], plan["version"]
    assert refusal(unsealed(plan)) == (
        f"x.fsk is {schema!r} version {version!r}; this fracskip reads 'fracskip.bundle' versions "
        "3 to 4: export its checkpoint again, with fracskip export CHECKPOINT --to FILE.fsk"
    )


@each_kind
def test_version_3_is_read_as_today_s(keywords: dict[str, Any]) -> None:
    data = random_bundle(1, **keywords)
    old = Parts.of(data).as_version_3().bundle()
    found, wanted = parse_bundle(old), parse_bundle(data)
    assert found.plan == wanted.plan
    assert found.digest != wanted.digest
    assert found.data == old


# -- tensors that do not fit the plan -------------------------------------------------------------


def with_tensor(name: str, change: Callable[[np.ndarray], Any]) -> str:
    """What is said of a bundle with one tensor changed."""
    tensors = dict(parse_bundle(DATA).tensors)
    tensors[name] = change(tensors[name].copy())
    with pytest.raises(BundleError) as caught:
        encode_bundle(PLAN, tensors)
    return str(caught.value)


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return change


def test_missing_and_surplus_tensors(tmp_path: Path) -> None:
    tensors = dict(parse_bundle(DATA).tensors)
    bias = tensors.pop(BIAS)
    with pytest.raises(BundleError, match=rf"its plan lacks tensor {BIAS}; export it again"):
        write_bundle(tmp_path / "x.fsk", PLAN, tensors)
    assert not (tmp_path / "x.fsk").exists()
    tensors |= {BIAS: bias, "extra": bias, "more": bias}
    with pytest.raises(BundleError, match="has no place for tensor extra and 1 more"):
        encode_bundle(PLAN, tensors)


def test_optional_tensors_may_be_left_out() -> None:
    table = PLAN.tensor_table
    optional = [name for name, spec in table.items() if spec.optional]
    assert optional == [
        "parts.2.4.0.zero",
        "parts.2.4.1.input",
        "parts.2.4.1.zero",
        "parts.2.8.0.input",
        "parts.2.8.0.zero",
        "parts.2.8.1.input",
        "parts.2.8.1.zero",
        "parts.2.shortcut.0.input",
        "parts.2.shortcut.0.zero",
        "parts.0.zero",
        "parts.1.zero",
        "parts.2.zero",
        "gate.block_bias",
    ]
    tensors = dict(parse_bundle(DATA).tensors)
    for name in optional:
        # A level of 0 is the one that fits everywhere.
        value = np.full(table[name].shape, not name.endswith("zero"), np.float32)
        with_it = {**tensors, name: value}
        without = {key: value for key, value in tensors.items() if key != name}
        for some in (with_it, without):
            assert parse_bundle(encode_bundle(PLAN, some)[0]).tensors.keys() == some.keys()
    with pytest.raises(BundleError, match=r"lacks tensor parts.2.4.0.input"):
        encode_bundle(PLAN, {k: v for k, v in tensors.items() if k != "parts.2.4.0.input"})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (BIAS, put(np.nan), "has values that are NaN or infinite"),
        ("parts.2.4.0.scale", put(np.inf), "has values that are NaN or infinite"),
        ("parts.2.step", put(0), "has values that are not above zero"),
        ("parts.2.4.0.input", put(-1), "has values that are not above zero"),
        ("parts.2.4.0.weight", put(8), "has weights from -7 to 8, 4 bits hold ±7"),
        ("parts.2.8.1.weight", put(-128), "has weights from -128 to 12"),
        ("parts.2.shortcut.0.weight", put(-128), "8 bits hold ±127"),
        (BIAS, lambda a: a[None], "is float32 (1, 5), the plan needs F32 (5,)"),
        (BIAS, lambda a: a[:-1], "is float32 (4,), the plan needs F32 (5,)"),
        (BIAS, lambda a: a.astype(np.float64), "is float64 (5,)"),
        (BIAS, lambda a: a.astype(np.int8), "is int8 (5,)"),
        ("parts.2.4.0.weight", lambda a: a.astype(np.float32), "the plan needs I8 (4, 3, 3, 3)"),
        ("parts.2.4.0.weight", lambda a: a.astype(np.uint8), "is uint8"),
    ],
)
def test_tensors_that_are_refused(name: str, change: Any, message: str) -> None:
    text = with_tensor(name, change)
    assert f": {name} " in text
    assert message in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts.2.4.0.zero": 16}, "parts.2.4.0.zero has values that are no levels of 4 bits"),
        ({"parts.2.4.0.zero": 0.5}, "parts.2.4.0.zero has values that are no levels of 4 bits"),
        ({"parts.2.zero": 256}, "parts.2.zero has values that are no levels of 8 bits"),
        ({"parts.2.zero": -1}, "parts.2.zero has values that are no levels of 8 bits"),
        (
            {"parts.2.4.1.zero": 3, "parts.2.4.1.input": None},
            "parts.2.4.1.zero is not 0, and a clamp must do what relu would",
        ),
        (
            {"parts.2.8.0.zero": 3, "parts.2.8.0.input": None},
            "parts.2.8.0.zero is not that of the levels that it takes",
        ),
        (
            {"parts.2.zero": 3},
            "parts.2.zero is not 0, and a clamp must do what a ReLU would",
        ),
        (
            {"parts.0.zero": 3, "parts.2.8.0.input": 1, "parts.2.shortcut.0.input": 1},
            "parts.1.zero is not that of the levels that its shortcut hands on",
        ),
        (
            {"parts.1.step": 0.5},
            "parts.1.step is not that of the levels that its shortcut hands on",
        ),
        ({"parts.1.step": None}, "lacks tensor parts.1.step"),
        ({"parts.3.step": 1}, "no place for tensor parts.3.step"),
    ],
    ids=str,
)
def test_grids_that_are_refused(changes: dict[str, float | None], message: str) -> None:
    tensors = {**parse_bundle(DATA).tensors}
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = np.array([value], np.float32)
    with pytest.raises(BundleError) as caught:
        encode_bundle(PLAN, tensors)
    assert message in str(caught.value)


def test_sums_that_could_leave_32_bits() -> None:
    shape = (1, 11, 11, 600)
    weight = np.full(shape, 127, np.int8)
    assert furthest(weight) == furthest(-weight) == 127 * 11 * 11 * 600 * 255 >= 2**31
    assert _fault(weight, TensorSpec(shape, 8)) == "has weights whose sums may leave 32 bits"
    weight[..., ::2] = -127
    assert _fault(weight, TensorSpec(shape, 8)) == ""
