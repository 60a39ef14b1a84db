"""The cache: decoded data sets as plain arrays, each with its digest.

One folder a data set:

    NAME/manifest.json       title, source, class names; shape, dtype and SHA-256 of each array
    NAME/train_images.npy    uint8 (N, H, W, C)
    NAME/train_labels.npy    int64 (N,)
    NAME/test_images.npy     and test_labels.npy likewise

A folder appears whole or not at all, an array is verified each time it is read, and nothing here
can unpickle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from fracskip.data.imageset import ImageSet, check_memory
from fracskip.errors import DataError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RawSet:
    """A data set as it was decoded, before it is stored.

    Attributes:
        title: Display name.
        source: Where it came from, in words.
        class_names: What the labels stand for.
        arrays: The four of `ARRAYS`: images uint8 (N, H, W, C), labels int64 (N,).
    """

    title: str
    source: str
    class_names: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayRecord(_Frozen):
    """What the manifest says of one array."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "int64"]
    sha256: str


class Manifest(_Frozen):
    """What is in a cache folder."""

    schema_version: Literal[1] = 1
    name: str
    title: str
    source: str
    class_names: tuple[str, ...]
    arrays: dict[str, ArrayRecord]


def cache_dir() -> Path:
    """The cache: $FRACSKIP_CACHE, else $XDG_CACHE_HOME/fracskip, else ~/.cache/fracskip."""
    if own := os.environ.get("FRACSKIP_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "fracskip"


def digest(array: NDArray[Any]) -> str:
    """SHA-256, in hexadecimal, of an array's values: little-endian, in C order."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.data).hexdigest()


def save(name: str, raw: RawSet) -> Path:
    """Stores a data set, replacing what was there; other processes see all of it or nothing.

    Returns:
        Its folder.

    Raises:
        DataError: if the cache cannot be written.
    """
    folder = cache_dir() / name
    fresh = folder.with_name(f".{name}-{uuid.uuid4().hex}")
    try:
        fresh.mkdir(parents=True)
        records = {key: _save_array(fresh, key, raw.arrays[key]) for key in ARRAYS}
        manifest = Manifest.model_validate(
            {
                "name": name,
                "title": raw.title,
                "source": raw.source,
                "class_names": raw.class_names,
                "arrays": records,
            }
        )
        (fresh / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _put_in_place(fresh, folder)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be written: {error}; free some space, or set "
            "FRACSKIP_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _save_array(folder: Path, key: str, array: NDArray[Any]) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    np.save(folder / f"{key}.npy", array, allow_pickle=False)
    return {"shape": array.shape, "dtype": str(array.dtype), "sha256": digest(array)}


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Renames `fresh` to `folder`; an older folder of that name is moved out of the way."""
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        old = fresh.with_name(f"{fresh.name}-old")
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def read_manifest(name: str) -> Manifest | None:
    """The manifest of a cached data set, or None where there is none.

    Raises:
        DataError: if there is one that cannot be understood.
    """
    path = cache_dir() / name / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None


def load(name: str, split: Literal["train", "test"]) -> ImageSet:
    """Reads one split of a cached data set and verifies it.

    Raises:
        DataError: if it is not there, or is not what was stored.
    """
    manifest = read_manifest(name)
    if manifest is None:
        raise DataError(
            f"data set {name} is not in the cache {cache_dir()}: run `fracskip data {name}`"
        )
    return ImageSet(
        images=_load_array(manifest, f"{split}_images"),
        labels=_load_array(manifest, f"{split}_labels"),
        class_names=manifest.class_names,
        name=manifest.title,
        split=split,
        source=manifest.source,
    )


def _load_array(manifest: Manifest, key: str) -> NDArray[Any]:
    """Reads one array, once its header agrees with the manifest, and checks its digest."""
    path = cache_dir() / manifest.name / f"{key}.npy"
    record = manifest.arrays.get(key)
    if record is None:
        raise _damaged(path, "the manifest does not list it")
    if len(record.shape) == 4:
        check_memory(*record.shape, name=manifest.title)
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if mapped.shape != record.shape or str(mapped.dtype) != record.dtype:
        raise _damaged(
            path, f"it holds {mapped.dtype} {mapped.shape}, not {record.dtype} {record.shape}"
        )
    array: NDArray[Any] = np.array(mapped, order="C")
    if digest(array) != record.sha256:
        raise _damaged(path, "its SHA-256 is not the one in the manifest")
    return array


def _damaged(path: Path, reason: str) -> DataError:
    name = path.parent.name
    return DataError(
        f"cached file {path} is damaged ({reason}): run `fracskip data {name}` to get it again"
    )
