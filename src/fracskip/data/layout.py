"""The shapes in which data sets are handed around: some files, loose or in one archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fracskip.data.imageset import ImageSet
from fracskip.data.store import RawSet, digest
from fracskip.errors import DataError

MAX_FILE_BYTES = 512 * 2**20
"""The largest file that is read, packed or unpacked; the sets known here stay below half of it."""

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
        except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
            raise DataError(
                f"{found} is damaged or not in the layout of {self.title} ({error}): get it again"
            ) from error
        self._verify(found, arrays)
        return RawSet(self.title, self.origin, self.class_names, arrays)

    def _unpack(self, archive: Path) -> Files:
        """Reads the wanted members by name; nothing is extracted to disk."""
        packed = read_limited(archive)
        self._check_md5(archive.name, packed)
        wanted = {f"{self.folder}/{name}": name for name in self.files}
        files: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{member.name} is too large, {member.size} bytes")
                stream = tar.extractfile(member)
                assert stream is not None
                files[name] = stream.read()
                if len(files) == len(self.files):
                    break
        if missing := set(self.files) - set(files):
            raise DataError(f"it lacks {', '.join(sorted(missing))}: get it again")
        return files

    def _loose(self, folder: Path) -> Files:
        files = {name: read_limited(folder / name) for name in self.files}
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


def read_limited(path: Path) -> bytes:
    """Reads a file of sane size.

    Raises:
        DataError: if it is larger than `MAX_FILE_BYTES`.
    """
    with path.open("rb") as stream:
        return _at_most(stream.read(MAX_FILE_BYTES + 1), path.name)


def gunzip(content: bytes, name: str) -> bytes:
    """Unpacks gzip data of sane size.

    Raises:
        DataError: if it unpacks to more than `MAX_FILE_BYTES`.
        OSError, EOFError, zlib.error: if it is damaged.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        return _at_most(stream.read(MAX_FILE_BYTES + 1), name)


def _at_most(content: bytes, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{name} exceeds {MAX_FILE_BYTES // 2**20} MiB: it is not the file meant")
    return content
