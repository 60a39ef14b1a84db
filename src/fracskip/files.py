"""Files that hold networks: read with clear errors, written whole or not at all."""

from __future__ import annotations

import os
import pickletools
import secrets
from contextlib import suppress
from pathlib import Path

from fracskip.errors import CheckpointError

MAX_HEADER_BYTES = 16 << 20


def write_atomically(
    path: Path, data: bytes, error: type[CheckpointError] = CheckpointError
) -> None:
    """Writes a file so that it is either the old one or the new one, never a part of either.

    Args:
        path: Where to; folders are made.
        data: The whole content.
        error: What to raise.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; the old file is
            untouched.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def split_safetensors(
    data: bytes, origin: str | Path, error: type[CheckpointError] = CheckpointError
) -> tuple[bytes, bytes]:
    """Splits a safetensors file into its header, as JSON text, and its tensors' bytes.

    Raises:
        CheckpointError: if it is a pickle, or too short to be what it says.
    """
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
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(data))
    return False
