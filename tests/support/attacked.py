"""Hostile images, bundles and checkpoints, read one after the other in a process of its own.

    PYTHONPATH=tests python -m support.attacked KIND FIRST STOP STEP

Prints "ready", then for each seed what came of the input that is made from it, as a line of JSON.
An input must be read, or refused by the error of its kind in one line. All else is a failure:
another exception, more than `MOST_MEMORY` above what reading a sound one took, words on stdout or
stderr, a socket, or a file other than its own (as Python's audit events tell). Words that libtiff
writes on stderr of damaged TIFFs are counted, no more: Pillow cannot keep them back. More than
`MOST_SECONDS` of processor time ends the process. `tools/attack.py` starts such processes, and
replaces those that die.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fracskip import InferenceSession
from fracskip.config import ImageConfig, ModelSpec
from fracskip.data.decode import decode_image
from fracskip.errors import MAX_MESSAGE, BundleError, CheckpointError, ConfigError, DataError
from support.hostile_files import (
    HOSTILE_BUNDLES,
    HOSTILE_CHECKPOINTS,
    Hostile,
    Parts,
    damaged_bundle,
    damaged_checkpoint,
    many_convolutions,
    many_pools,
    spec_tree,
)
from support.hostile_images import damaged_image, sound_images
from support.native_build import SEEDS
from support.random_bundle import random_bundle

MOST_SECONDS = 10
MOST_MEMORY = 2**30
IMAGES = (
    ImageConfig(size=(8, 9)),
    ImageConfig(size=(8, 9), channels=1, mean=(0.5,), std=(0.5,)),
)

Make = Callable[[int], tuple[str, bytes]]  # of a seed: what it is, and the file
# How an input is made and read, a sound one, and what may be raised.
Kind = tuple[Make, Callable[[Path], object], bytes, tuple[type[Exception], ...]]


def image_kind() -> Kind:
    sound = sound_images()

    def read(path: Path) -> None:
        for image in IMAGES:
            pixels = decode_image(path, image)
            assert pixels.shape == (*image.size, image.channels)
            assert pixels.dtype == np.uint8

    def make(seed: int) -> tuple[str, bytes]:
        return damaged_image(random.Random(f"image:{seed}"), sound)

    return make, read, sound["PNG"], (DataError,)


def bundle_kind() -> Kind:
    sound = {name: random_bundle(1, **keywords) for name, keywords in SEEDS.items()}
    sound |= {"convolutions": many_convolutions(3), "pools": many_pools(3)}

    def make(seed: int) -> tuple[str, bytes]:
        draw = random.Random(f"bundle:{seed}")
        if draw.random() < 0.1:
            return hostile(draw, HOSTILE_BUNDLES)
        name = draw.choice(list(sound))
        return name, damaged_bundle(draw, sound[name])

    def read(path: Path) -> None:
        session = InferenceSession(path)
        shape = (2, *session.image.size, session.image.channels)
        images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        reach = session.plan.budgets
        logits = session.run(images, budget=None if reach is None else reach[1]).logits
        assert logits.shape == (2, len(session.class_names))
        assert np.isfinite(logits).all()

    return make, read, sound["basic"], (BundleError,)


def checkpoint_kind() -> Kind:
    import torch  # other kinds need none

    from fracskip.checkpoint import load, save
    from fracskip.dynamic import build_network

    torch.set_num_threads(1)
    torch.manual_seed(0)
    changes: dict[str, dict[str, Any]] = {
        "float": {},
        "int8": {"quant": {"stream": "int8"}},
        "own": {"options": ["skip", "2", "8", "full"], "quant": {"weights": "per_option"}},
        "feedforward": {"gate": {"kind": "feedforward", "width": 4}},
        "static": {"options": ["full"]},
    }
    sound = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, change in changes.items():
            path = Path(folder) / name
            spec = ModelSpec.model_validate(spec_tree(**change))
            save(build_network(spec), path, packed=name == "int8")
            sound[name] = path.read_bytes()

    def make(seed: int) -> tuple[str, bytes]:
        draw = random.Random(f"checkpoint:{seed}")
        if draw.random() < 0.1:
            return hostile(draw, HOSTILE_CHECKPOINTS)
        name = draw.choice(list(sound))
        return name, damaged_checkpoint(draw, sound[name])

    return make, load, sound["float"], (CheckpointError, ConfigError)


def fault_kind() -> Kind:
    """Inputs that do in turn what none may do: they hold that it is noticed."""

    def work_without_end() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.05)  # instead of `MOST_SECONDS`
        while True:
            pass

    def refuse() -> None:
        raise DataError("one line\nand another")

    faults: list[Callable[[Path], object]] = [
        lambda path: None,
        lambda path: 1 // 0,
        lambda path: os.abort(),
        lambda path: work_without_end(),
        lambda path: bytearray(MOST_MEMORY + 2**20),
        lambda path: bytearray(3 * MOST_MEMORY),
        lambda path: os.write(2, b"words"),
        lambda path: socket.socket().close(),
        lambda path: path.with_name("words").read_bytes(),
        lambda path: path.with_name("made").mkdir(),
        lambda path: refuse(),
        lambda path: None,
    ]

    def read(path: Path) -> None:
        faults[int(path.read_bytes())](path)

    return lambda seed: ("", b"%d" % seed), read, b"0", (DataError,)


def hostile(draw: random.Random, table: dict[str, Hostile]) -> tuple[str, bytes]:
    name = draw.choice(list(table))
    return name, table[name](draw, int(10 ** draw.uniform(2, 5.5)))


KINDS: dict[str, Callable[[], Kind]] = {
    "image": image_kind,
    "bundle": bundle_kind,
    "checkpoint": checkpoint_kind,
    "fault": fault_kind,
}


def repaired(kind: str, data: bytes) -> bool:
    """Whether the digest of a bundle or checkpoint fits what was damaged."""
    try:
        parts = Parts.of(data)
        return data == (parts.bundle() if kind == "bundle" else parts.checkpoint())
    except Exception:  # damaged too much for its digest to be told
        return False


# -- one after the other --------------------------------------------------------------------------

_touched: list[str] = []
_allowed: set[str] | None = None  # files that may be opened; None while nothing is read
_WATCHED = ("socket.", "open", "os.", "subprocess.", "pickle.find_class")
_MODULES = re.compile(r"\.(py|pyc|so)$")


def audit(event: str, args: tuple[Any, ...]) -> None:
    """Notes what reading one input reaches, but for its own file and modules that are imported."""
    if _allowed is None or not event.startswith(_WATCHED):
        return
    if event == "open":
        if isinstance(args[0], int):  # was noted when it was opened by its name
            return
        path, mode = str(args[0]), args[1]
        reading = mode in ("r", "rb") or (mode is None and not args[2] & (os.O_WRONLY | os.O_RDWR))
        if reading and (path in _allowed or _MODULES.search(path)):
            return
    if event in ("os.listdir", "os.scandir") and str(args[0]) in sys.path_importer_cache:
        return  # the import system
    _touched.append(f"{event} {args[0] if args else ''}"[:200])


def memory(field: str) -> int:
    """Of this process, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def read_one(
    kind: str, seed: int, parts: Kind, path: Path, base: int, words: Path
) -> dict[str, Any]:
    """Makes an input, reads it, and says what came of it."""
    global _allowed
    make, read, _, refusals = parts
    what, data = make(seed)
    path.write_bytes(data)
    outcome: dict[str, Any] = {"seed": seed, "what": what, "repaired": repaired(kind, data)}
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # ends the process, within native code too
    signal.setitimer(signal.ITIMER_REAL, 30 * MOST_SECONDS)  # where it waits and does not work
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    reason = ""
    begun, _allowed = time.process_time(), {str(path)}
    try:
        read(path)
        outcome["outcome"] = "read"
    except refusals as error:
        outcome["outcome"] = type(error).__name__
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > MAX_MESSAGE:
            reason = f"a message of {len(message)} characters in {len(message.splitlines())} lines"
        if isinstance(error.__cause__, MemoryError):
            reason = "no memory was left"
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:300]
    finally:
        _allowed = None
    outcome["seconds"] = round(time.process_time() - begun, 4)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    outcome["bytes"] = max(0, memory("VmHWM") - base)
    sys.stdout.flush()
    if outcome["bytes"] > MOST_MEMORY:
        reason = reason or f"{outcome['bytes'] / 2**20:.0f} MiB of memory"
    if _touched:
        reason = reason or f"it reached for {_touched[:3]}"
        _touched.clear()
    if said := words.read_bytes():
        os.truncate(words, 0)
        if kind == "image" and data.startswith((b"II", b"MM")):
            outcome["libtiff_words"] = True  # Pillow leaves libtiff's handler of errors as it is
        else:
            reason = reason or f"it said {said[:200]!r}"
    return {**outcome, "outcome": "failed", "reason": reason} if reason else outcome


def work(kind: str, seeds: range) -> None:
    """Reads inputs one after the other; prints one line of JSON for each."""
    with tempfile.TemporaryDirectory() as folder:
        parts, path, words = KINDS[kind](), Path(folder) / "input", Path(folder) / "words"
        path.write_bytes(parts[2])
        parts[1](path)
        base = memory("VmRSS")
        most = memory("VmSize") + 2 * MOST_MEMORY  # addresses; `MOST_MEMORY` is of pages in use
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.fdopen(os.dup(1), "w")
        said = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.addaudithook(audit)
        print("ready", file=out, flush=True)
        for seed in seeds:
            print(json.dumps(read_one(kind, seed, parts, path, base, words)), file=out, flush=True)


if __name__ == "__main__":
    work(sys.argv[1], range(*map(int, sys.argv[2:])))
