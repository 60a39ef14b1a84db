"""The shapes in which data sets are handed around: some files, loose or in one archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from numpy.typing import NDArray

from fracskip.data.imageset import ImageSet
from fracskip.data.store import RawSet, digest
from fracskip.errors import DataError

MAX_FILE_BYTES = 256 * 2**20
"""The most that is read of a file, and of an archive in all, packed or unpacked: the sets known
here take 187 MB at most."""

MAX_LABELS_BYTES = 4 * 2**20
"""The largest JSON file of labels that is read: they are 50,000 numbers of a few digits."""

_DAMAGES = (OSError, ValueError, EOFError, RecursionError, tarfile.TarError, zlib.error)
"""What reading a damaged file may raise."""

Files = Mapping[str, bytes]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out in files.

    Attributes:
        title: Display name of the data set that these files hold.
        origin: Where such files come from, in words.
        class_names: What the labels stand for.
        files: The files' names.
        parse: Their contents, by name -> the arrays of `store.ARRAYS`.
        archive: Name of the tar.gz that holds them, if there is one.
        folder: The folder that they are in, in the archive and once it is extracted.
        max_bytes: The most that one of the files holds.
        md5s: MD5 of the archive or of loose files, where published.
        digests: SHA-256 of the decoded arrays, where known.
    """

    title: str
    origin: str
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    parse: Callable[[Files], Arrays]
    archive: str = ""
    folder: str = ""
    max_bytes: int = MAX_FILE_BYTES
    md5s: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        few = self.files if len(self.files) < 3 else (self.files[0], "...", self.files[-1])
        return f"{self.archive} or {' '.join(few)}" if self.archive else " ".join(few)

    def find(self, place: Path) -> Path | None:
        """The archive, or the folder with all the files, in `place`; None where there is none."""
        if self.archive and (place / self.archive).is_file():
            return place / self.archive
        for folder in (place / self.folder, place):
            if all((folder / name).is_file() for name in self.files):
                return folder
        return None

    def read(self, place: Path) -> RawSet:
        """Reads, decodes and verifies the data set in `place`.

        Raises:
            DataError: if it is not there, damaged, or not what it should be.
        """
        found = self.find(place)
        if found is None:
            raise DataError(f"{place} holds no {self}: check the path")
        try:
            arrays = self.parse(self._unpack(found) if found.is_file() else self._loose(found))
        except DataError as error:
            raise DataError(f"{found}: {error}") from None
        except PermissionError as error:
            raise DataError(
                f"{found} cannot be read ({error.strerror}): check that you may read it"
            ) from None
        except _DAMAGES as error:
            raise DataError(
                f"{found} is damaged or not in the layout of {self.title} ({error}): get it again"
            ) from error
        self._verify(found, arrays)
        return RawSet(self.title, self.origin, self.class_names, arrays)

    def _unpack(self, archive: Path) -> Files:
        """Reads the wanted members by name; nothing is extracted to disk."""
        packed = read_limited(archive, MAX_FILE_BYTES)
        self._check_md5(archive.name, packed)
        wanted = {f"{self.folder}/{name}": name for name in self.files}
        files: dict[str, bytes] = {}
        unpacked = cast(IO[bytes], _Unpacked(packed, archive.name))
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=2**20) as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > self.max_bytes:
                    raise _too_large(member.name, self.max_bytes)
                stream = tar.extractfile(member)
                assert stream is not None
                files[name] = stream.read()
                if len(files) == len(self.files):
                    break
        if missing := set(self.files) - set(files):
            raise DataError(f"it lacks {', '.join(sorted(missing))}: get it again")
        return files

    def _loose(self, folder: Path) -> Files:
        files = {name: read_limited(folder / name, self.max_bytes) for name in self.files}
        for name, content in files.items():
            self._check_md5(name, content)
        return files

    def _check_md5(self, name: str, content: bytes) -> None:
        if name in self.md5s and md5_of(content) != self.md5s[name]:
            raise DataError(
                f"the MD5 of {name} is {md5_of(content)}, not {self.md5s[name]}: "
                "it is damaged or another version, get it again"
            )

    def _verify(self, found: Path, arrays: Arrays) -> None:
        for split in ("train", "test"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            ImageSet(images, labels, self.class_names, self.title, split, self.origin)
        for key, expected in self.digests.items():
            if (actual := digest(arrays[key])) != expected:
                raise DataError(
                    f"{found}: the SHA-256 of the decoded {key} is {actual}, not {expected}: "
                    "the files are damaged or another version, get them again"
                )


def md5_of(content: bytes) -> str:
    """MD5 in hexadecimal: for comparison with published sums, not for security."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def read_limited(path: Path, limit: int) -> bytes:
    """Reads a file of `limit` bytes at most.

    Raises:
        DataError: if it is larger; nothing is read then.
    """
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise _too_large(path.name, limit)
        return stream.read(limit)


def gunzip(content: bytes, name: str, limit: int) -> bytes:
    """Unpacks gzip data.

    Args:
        content: What is packed.
        name: Its file's, for messages.
        limit: The most that such a file holds, in bytes.

    Raises:
        DataError: if it unpacks to more than `limit`.
        OSError, EOFError, zlib.error: if it is damaged.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        unpacked = stream.read(limit + 1)
    if len(unpacked) > limit:
        raise _too_large(name, limit)
    return unpacked


def read_labels(content: bytes, name: str) -> Any:
    """Reads a JSON file of labels.

    Raises:
        DataError: if it is larger than `MAX_LABELS_BYTES`.
        ValueError, RecursionError: if it is damaged, or nested without end.
    """
    if len(content) > MAX_LABELS_BYTES:
        raise _too_large(name, MAX_LABELS_BYTES)
    return json.loads(content)


class _Unpacked:
    """What a gzip file unpacks to, as a stream that ends with an error where it is too much."""

    def __init__(self, packed: bytes, name: str) -> None:
        self._stream = gzip.GzipFile(fileobj=io.BytesIO(packed))
        self._name, self._left = name, MAX_FILE_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise _too_large(self._name, MAX_FILE_BYTES)
        return content


def _too_large(name: str, limit: int) -> DataError:
    return DataError(f"{name} holds more than {limit:,} bytes: it is not the file meant")
