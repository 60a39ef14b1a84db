"""Files that hold networks: read with clear errors, written whole or not at all.

A file of n bytes is read, and refused where it is none of ours, in time and memory proportional to
n: regular files alone are read, at most `MAX_FILE_BYTES` of them, and JSON is parsed only where it
holds at most `MAX_JSON_VALUES` values.
"""

from __future__ import annotations

import itertools
import json
import os
import pickletools
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from fracskip.errors import CheckpointError, FracskipError

MAX_FILE_BYTES = 16 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_JSON_VALUES = 1 << 19  # in one text; a value takes up to some 200 bytes once it is parsed
MAX_JSON_KEYS = 4096  # in one object, but for a header, which has one a tensor
PICKLE_OPCODES = 1000  # so many in a row are no coincidence


def read_file(
    path: Path,
    what: str,
    error: type[FracskipError] = CheckpointError,
    instead: str = "give another file",
    most: int = MAX_FILE_BYTES,
) -> bytes:
    """Reads a regular file: no device, pipe or socket, which might never end.

    Args:
        path: Which.
        what: What to call it in errors: 'checkpoint'.
        error: What to raise.
        instead: What to do if there is none.
        most: Bytes that it may have.

    Raises:
        FracskipError: `error`, if it does not exist, cannot be read, or is too large.
    """
    try:
        # A pipe that nobody writes to would wait; a regular file takes no notice of the flag.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(
                    f"{what} {path} is no regular file but a device, a pipe or the like: copy its "
                    "content into a file and give that"
                )
            if found.st_size > most:
                raise error(
                    f"{what} {path} has {found.st_size:,} bytes and may have {most:,}: give "
                    "another file"
                )
            return file.read(found.st_size)
    except FracskipError:
        raise  # it is a ValueError, too
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist; {instead}") from None
    except OSError as reason:
        raise error(f"{what} {path} cannot be read: {reason.strerror}") from None
    except MemoryError:
        raise error(f"{what} {path} is larger than the free memory: free some") from None
    except ValueError as reason:  # a path with a null character
        raise error(f"{what} {str(path)!r} cannot be read: {reason}") from None


def write_atomically(path: Path, data: bytes, error: type[FracskipError] = CheckpointError) -> None:
    """Writes a file so that it is either the old one or the new one, never a part of either.

    A device or a pipe is no file that could be replaced: it is written to.

    Args:
        path: Where to; folders are made.
        data: The whole content.
        error: What to raise.

    Raises:
        FracskipError: `error`, if the disk is full or the folder cannot be written; the old file
            is untouched.
    """
    if not path.name:
        raise error(f"{path} is a folder: name a file to write")
    # Names have at most 255 bytes, of which a character takes up to four.
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _kind_of(path) not in (None, stat.S_IFREG):
            _write_in_place(path, data)
            return
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as reason:
        raise error(
            f"{path} could not be written ({reason.strerror or reason}); what was there before is "
            "unchanged: free some space or choose another folder, then resume"
        ) from reason
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _kind_of(path: Path) -> int | None:
    """What a path leads to, as `stat.S_IFMT` says it; None if to nothing, or nobody may know."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return None


def _write_in_place(path: Path, data: bytes) -> None:
    # A pipe that nobody reads would wait for ever.
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with open(descriptor, "wb") as file:
        os.set_blocking(descriptor, True)
        file.write(data)


def require_regular_file(
    path: str | Path, what: str, error: type[FracskipError] = CheckpointError
) -> None:
    """Refuses a path that leads to a pipe, a socket or a device: reading one may never end.

    A folder, a path that leads nowhere and one that may not be followed are left to whoever opens
    them.

    Args:
        path: Which.
        what: What to call it in errors: 'image'.
        error: What to raise.

    Raises:
        FracskipError: `error`, saying so.
    """
    if _kind_of(Path(path)) not in (None, stat.S_IFREG, stat.S_IFDIR):
        raise error(
            f"{what} {path} is no regular file but a device, a pipe or the like: copy its content "
            "into a file and give that"
        )


def parse_json(
    text: str | bytes, most_keys: int = MAX_JSON_KEYS, most_values: int = MAX_JSON_VALUES
) -> Any:
    """Parses JSON that may come from anywhere.

    Args:
        text: UTF-8, if it is bytes.
        most_keys: That an object may have.
        most_values: That there may be.

    Raises:
        ValueError: if it is no JSON, has a key twice or too many keys in one object, is nested too
            deeply, or has too many values.
    """
    text = text.decode() if isinstance(text, bytes) else text
    # No fewer than its values: every one but the first follows one of these.
    if 1 + sum(map(text.count, ",[{")) > most_values:
        raise ValueError(f"more than {most_values:,} values")

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > most_keys:
            raise ValueError(f"more than {most_keys:,} keys in one object")
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise ValueError("a key occurs twice")
        return tree

    try:
        return json.loads(text, object_pairs_hook=made)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_header(
    data: bytes, origin: str | Path, error: type[CheckpointError] = CheckpointError
) -> tuple[dict[str, Any], dict[str, Any] | None, bytes]:
    """Takes a safetensors file apart.

    Args:
        data: The whole file.
        origin: What to call it in errors.
        error: What to raise.

    Returns:
        The tensors' entries by name, not checked; the metadata, if there are any; the tensors'
        bytes.

    Raises:
        CheckpointError: if it is a pickle, too short to be what it says, or its header is no JSON.
    """
    header, body = _split(data, origin, error)
    try:
        tree = parse_json(header, MAX_JSON_VALUES)
        meta = tree.pop("__metadata__", None)
    except (ValueError, TypeError, AttributeError) as reason:
        why = f" ({reason})" if isinstance(reason, ValueError) else ""
        raise error(f"{origin} has a damaged header{why}; copy it again") from None
    return tree, meta if isinstance(meta, dict) else None, body


def _split(data: bytes, origin: str | Path, error: type[CheckpointError]) -> tuple[bytes, bytes]:
    """A safetensors file's header, as JSON text, and its tensors' bytes."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    if len(data) < 8 or size > MAX_HEADER_BYTES or len(header) < size:
        if _is_pickle(data):
            raise error(
                f"{origin} is a pickle (as torch.save writes them); fracskip never loads one, "
                "because it can run code: save the state as safetensors, where you trust the file, "
                "with safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
                "'FILE.safetensors')"
            )
        raise error(
            f"{origin} is no complete safetensors file ({len(data)} bytes); copy it again or give "
            "another"
        )
    return header, data[8 + size :]


def _is_pickle(data: bytes) -> bool:
    """Whether bytes are a pickle, or a ZIP file, which is where torch.save puts one."""
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return True
    # Protocols 0 and 1 have no mark: read the opcodes (which runs nothing) up to STOP.
    with suppress(Exception):
        first = itertools.islice(pickletools.genops(data), PICKLE_OPCODES)
        names = [opcode.name for opcode, _, _ in first]
        return names[-1] == "STOP" or len(names) == PICKLE_OPCODES
    return False
