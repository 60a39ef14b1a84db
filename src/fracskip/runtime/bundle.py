"""Deployment bundles (.fsk): reading, writing, and refusing what is none. See docs/bundle.md.

Everything is checked before it is used: the file's structure, its digest, the plan, and every
tensor's shape, type and values. Whatever is wrong is a `BundleError`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from fracskip.config import explain
from fracskip.errors import BundleError
from fracskip.files import parse_json, read_file, read_header, write_atomically
from fracskip.legacy import bundle as todays_plan
from fracskip.runtime.elements import (
    HIGHEST_LEVEL,
    MAX_ELEMENTS,
    MAX_VALUES,
    SCHEMA,
    TensorSpec,
    is_written_as,
)
from fracskip.runtime.plan import Plan

BUNDLED = {
    "bundled": "dfs_resnet38_cifar10.fsk",
    "dfs-resnet38-cifar10": "dfs_resnet38_cifar10.fsk",
    "cascade-cifar10": "cascade_cifar10.fsk",
}
SUFFIX = ".fsk"
VERSION = 4
OLDEST_VERSION = 3
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1")}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked.

    Attributes:
        plan: What the network is.
        tensors: Float32 and int8 arrays by name, read-only.
        digest: 'sha256:...' over plan and tensors.
        data: The file's bytes.
    """

    plan: Plan
    tensors: Arrays
    digest: str
    data: bytes


@dataclass(frozen=True)
class Container:
    """A file with a plan, before that is read.

    Attributes:
        schema: That the plan says.
        version: Likewise.
        text: The plan.
        tensors: Float32 and int8 arrays by name, read-only.
        digest: 'sha256:...' over plan and tensors; it is right.
        data: The file's bytes.
    """

    schema: Any
    version: Any
    text: str
    tensors: Arrays
    digest: str
    data: bytes


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: bytes from begin to end of the file's body."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def resolve(name: str | Path) -> Path:
    """A bundle's path: that of the bundled one by name, or the path itself."""
    if str(name) in BUNDLED:
        return Path(str(resources.files("fracskip") / "assets" / BUNDLED[str(name)]))
    return Path(name)


def read_bundle(name: str | Path) -> Bundle:
    """Reads and checks a bundle.

    Args:
        name: 'bundled' or a file's path.

    Raises:
        BundleError: saying what is wrong with it.
    """
    return parse_bundle(*bytes_of(name))


def bytes_of(name: str | Path) -> tuple[bytes, Path]:
    """A bundle's bytes, not yet checked, and its path.

    Raises:
        BundleError: if they cannot be read.
    """
    path = resolve(name)
    instead = f"give a {SUFFIX} file or one of: {', '.join(BUNDLED)}"
    return read_file(path, "bundle", BundleError, instead), path


def parse_bundle(data: bytes, origin: str | Path = "bundle") -> Bundle:
    """Checks a bundle's bytes.

    Args:
        data: The whole file.
        origin: What to call it in errors.

    Raises:
        BundleError: saying what is wrong with it.
    """
    return bundle_in(open_container(data, origin), origin)


def open_container(data: bytes, origin: str | Path) -> Container:
    """A file's plan, not yet read, and tensors, not yet held against it.

    Raises:
        BundleError: if it is no safetensors file with a plan and digest, or was damaged.
    """
    tree, meta, body = read_header(data, origin, BundleError)
    if meta is None or "fracskip" not in meta:
        raise BundleError(
            f"{origin} is a plain safetensors file without a plan: a bundle is made from a "
            f"checkpoint, with fracskip export CHECKPOINT --to FILE{SUFFIX}"
        )
    text, digest = meta["fracskip"], meta.pop("digest", None)
    if not isinstance(text, str) or len(meta) != 1:
        raise BundleError(f"{origin} has damaged metadata; copy it again")
    schema, version = _kind(text, origin)
    if schema == "fracskip.checkpoint":
        raise BundleError(
            f"{origin} is a checkpoint, not a bundle: make one of it with "
            f"fracskip export {origin} --to FILE{SUFFIX}"
        )
    try:
        entries = {name: _entry(item) for name, item in tree.items()}
        _check_tiling(entries, len(body))
        found = _digest(text, body, entries)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{origin} has a damaged header ({error}); copy it again") from None
    if found != digest:
        raise BundleError(
            f"{origin} does not match its digest: at least one byte was changed since it was "
            "written; copy it again"
        )
    tensors = {
        name: np.frombuffer(body[item.begin : item.end], _TYPES[item.dtype]).reshape(item.shape)
        for name, item in entries.items()
    }
    return Container(schema, version, text, tensors, found, data)


def bundle_in(container: Container, origin: str | Path) -> Bundle:
    """The network in a container, checked.

    Raises:
        BundleError: saying what is wrong with it.
    """
    refuse_others(container, SCHEMA, range(OLDEST_VERSION, VERSION + 1), origin)
    plan = read_plan(Plan, container.text, origin, todays_plan)
    check_tensors(plan, container.tensors, origin)
    return Bundle(plan, container.tensors, container.digest, container.data)


def _kind(text: str, origin: str | Path) -> tuple[Any, Any]:
    """Schema and version of a plan."""
    try:
        tree = parse_json(text, most_values=MAX_VALUES)
        return tree["schema"], tree["version"]
    except (ValueError, KeyError, TypeError) as error:
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise BundleError(f"{origin} has a damaged plan{why}; copy it again") from None


def refuse_others(
    container: Container, schema: str, versions: Sequence[int], origin: str | Path
) -> None:
    """Tells a file of another kind or version from a damaged one.

    Raises:
        BundleError: if it is not of this schema and one of these versions.
    """
    found = container.schema, container.version
    if found[0] != schema or found[1] not in versions:
        ends = sorted({versions[0], versions[-1]})
        known = f"version{'s' if len(ends) > 1 else ''} {' to '.join(map(str, ends))}"
        raise BundleError(
            f"{origin} is {found[0]!r} version {found[1]!r}; this fracskip reads {schema!r} "
            f"{known}: export its checkpoint again, with "
            f"fracskip export CHECKPOINT --to FILE{SUFFIX}"
        )


AnyPlan = TypeVar("AnyPlan", bound=BaseModel)


def read_plan(
    kind: type[AnyPlan],
    text: str,
    origin: str | Path,
    today: Callable[[Any], Any] = lambda tree: tree,
) -> AnyPlan:
    """A plan of a kind from its text.

    Args:
        kind: Of plan.
        text: JSON.
        origin: What to call it in errors.
        today: Makes a tree as it is written today of an older version's.

    Raises:
        BundleError: if it is none, or leaves something out.
    """
    try:
        tree = today(json.loads(text))
        plan = kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise BundleError(f"{origin} describes no network: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{origin} has a damaged plan ({error}); copy it again") from None
    # Nothing is left to defaults or converted: other readers may do otherwise.
    if not is_written_as(json.loads(plan.model_dump_json(by_alias=True)), tree):
        raise BundleError(
            f"{origin}: its plan leaves something out, or has a number of another kind; "
            "export it again"
        )
    return plan


def _entry(item: dict[str, Any]) -> _Entry:
    dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
    numbers = [*shape, begin, end]
    if len(item) != 3 or not isinstance(shape, list) or any(type(n) is not int for n in numbers):
        raise ValueError("a tensor's entry is malformed")
    if dtype not in _TYPES:
        raise ValueError(f"type {dtype} is none of {', '.join(_TYPES)}")
    if len(shape) > 4 or min(numbers) < 0:
        raise ValueError("a tensor's shape or place is impossible")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or end - begin != count * _TYPES[dtype].itemsize:
        raise ValueError("a tensor's size does not fit its place")
    return _Entry(dtype, shape, begin, end)


def _check_tiling(entries: Mapping[str, _Entry], size: int) -> None:
    """The body holds the tensors side by side, and nothing else."""
    place = 0
    for item in sorted(entries.values(), key=lambda item: (item.begin, item.end)):
        if item.begin != place:
            raise ValueError("tensors overlap or leave gaps")
        place = item.end
    if place != size:
        raise ValueError(f"tensors take {place} bytes of {size}")


def _digest(text: str, body: bytes, entries: Mapping[str, _Entry]) -> str:
    total = hashlib.sha256(text.encode() + b"\n")
    total.update(body)
    for name, item in sorted(entries.items()):
        total.update(f"\n{name} {item.dtype} {item.shape} {item.begin} {item.end}".encode())
    return f"sha256:{total.hexdigest()}"


def check_tensors(plan: Plan, tensors: Arrays, origin: str | Path) -> None:
    """Holds tensors against what a plan needs.

    Raises:
        BundleError: naming the first that is missing, surplus, of another shape or type, not
            finite, or outside its width's grid.
    """
    known = 0
    for name, spec in plan.needed():
        value = tensors.get(name)
        if value is None and not spec.optional:
            raise BundleError(f"{origin}: its plan lacks tensor {name}; export it again")
        if value is not None and (fault := _fault(value, spec)):
            raise BundleError(f"{origin}: {name} {fault}; export it again")
        known += value is not None
    if known < len(tensors):
        first, *others = sorted(tensors.keys() - plan.tensor_table.keys())
        more = f" and {len(others)} more" if others else ""
        raise BundleError(
            f"{origin}: its plan has no place for tensor {first}{more}; export it again"
        )
    if fault := plan.fault(tensors):
        raise BundleError(f"{origin}: {fault}; export it again")


def _fault(value: NDArray[Any], spec: TensorSpec) -> str:
    if value.dtype != _TYPES[spec.dtype] or value.shape != spec.shape:
        return f"is {value.dtype} {value.shape}, the plan needs {spec.dtype} {spec.shape}"
    if spec.bits:
        low, high = int(value.min()), int(value.max())
        if max(-low, high) > spec.largest:
            return f"has weights from {low} to {high}, {spec.bits} bits hold ±{spec.largest}"
        if furthest(value) >= 2**31:
            return "has weights whose sums may leave 32 bits"
    elif not np.isfinite(value).all():
        return "has values that are NaN or infinite"
    elif spec.positive and not (value > 0).all():
        return "has values that are not above zero"
    elif spec.levels and not _are_levels(value, spec.levels):
        return f"has values that are no levels of {spec.levels} bits"
    return ""


def _are_levels(value: NDArray[Any], bits: int) -> bool:
    return bool(((value == np.rint(value)) & (value >= 0) & (value < 2**bits)).all())


def furthest(weight: NDArray[np.int8]) -> int:
    """The largest magnitude that any partial sum of weights (O, kh, kw, I) and levels can have."""
    axes = tuple(range(1, weight.ndim))
    up = np.maximum(weight, 0).sum(axes, dtype=np.int64)
    down = np.minimum(weight, 0).sum(axes, dtype=np.int64)
    return HIGHEST_LEVEL * int(max(up.max(), -down.min()))


def encode_bundle(plan: Plan, tensors: Arrays) -> tuple[bytes, str]:
    """A bundle's bytes and its digest.

    Args:
        plan: What the network is.
        tensors: Float32 and int8 arrays by name, as `Plan.tensor_table` asks for them.

    Raises:
        BundleError: if the tensors are not what the plan needs.
    """
    check_tensors(plan, tensors, plan.name)
    return encode_container(plan.model_dump_json(by_alias=True), tensors)


def encode_container(text: str, tensors: Arrays) -> tuple[bytes, str]:
    """A file of a plan's text and tensors: its bytes and its digest."""
    entries: dict[str, _Entry] = {}
    parts, place = [], 0
    # Floats first, so that they lie at multiples of four bytes.
    for name in sorted(tensors, key=lambda name: (tensors[name].itemsize != 4, name)):
        value = tensors[name]
        kind = "I8" if value.itemsize == 1 else "F32"
        parts.append(value.tobytes())
        entries[name] = _Entry(kind, list(value.shape), place, place + value.nbytes)
        place += value.nbytes
    body = b"".join(parts)
    digest = _digest(text, body, entries)
    header: dict[str, Any] = {"__metadata__": {"fracskip": text, "digest": digest}}
    for name, item in entries.items():
        header[name] = {
            "dtype": item.dtype,
            "shape": item.shape,
            "data_offsets": [item.begin, item.end],
        }
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + body, digest


def write_bundle(path: str | Path, plan: Plan, tensors: Arrays) -> str:
    """Writes a bundle, atomically. Returns its digest.

    Raises:
        BundleError: if the tensors are not what the plan needs, or the file cannot be written.
    """
    data, digest = encode_bundle(plan, tensors)
    write_atomically(Path(path), data, BundleError)
    return digest
