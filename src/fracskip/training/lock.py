"""One training at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fracskip.errors import CheckpointError, ConfigError

NAME = "run.lock"
_guard = threading.Lock()
_held: set[Path] = set()  # by this process, whose threads the system does not tell apart


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other training out of a folder, which is made if need be.

    The lock is the system's, on a file that says who holds it. So it ends with its process,
    however that ends: a file that a kill leaves behind locks nothing, and no identity has to be
    compared that a later process might share. Child processes do not inherit it.

    Raises:
        ConfigError: if another training holds the folder.
        CheckpointError: if it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder.absolute() / NAME
    with _guard:
        if path in _held:
            raise _in_use(folder, "this process")
        file = _opened(path)
        _held.add(path)
    try:
        yield
    finally:
        with _guard, suppress(OSError):
            path.unlink()
        file.close()
        _held.discard(path)
        for each in made:  # where nothing came of it
            with suppress(OSError):
                each.rmdir()


def _opened(path: Path) -> IO[str]:
    """The lock's file, locked, with this process's identity in it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"{path.parent} could not be written ({error.strerror or error}): choose another "
                "folder"
            ) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(200).strip()
                file.close()
                raise _in_use(path.parent, holder or "another process") from None
            # A file system without locks: better to train without one than not at all.
        # Whoever held it may have removed the file between the two calls.
        with suppress(OSError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                return file
        file.close()


def _in_use(folder: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"{folder} is in use by another training ({holder}): wait until it is done, stop it, or "
        "choose another name"
    )
