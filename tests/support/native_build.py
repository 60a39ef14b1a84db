"""Builds the native drivers with sanitizers, and bundles for them to work on."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from support.cascades import cascade, random_cascade
from support.random_bundle import random_bundle

ROOT = Path(__file__).parents[2]

Kind = Literal["address", "thread", "plain"]
SANITIZERS: dict[Kind, str] = {
    "address": "address,undefined,float-cast-overflow",
    "thread": "thread",
    "plain": "",
}

# Small enough to be read and run thousands of times under a sanitizer; every shape of a bundle.
_SMALL: dict[str, Any] = {"image": (8, 8), "widths": (4, 8), "depth": 1}
SEEDS: dict[str, dict[str, Any]] = {
    "basic": {**_SMALL, "depth": 2},
    "bottleneck": {"blocks": "bottleneck", "image": (8, 9), "widths": (4,), "depth": 2},
    "budget": {**_SMALL, "budget_input": True, "options": ("skip", 2, 5, 8, 12, "full")},
    "ends8": {**_SMALL, "first": 8, "ends": 8},
    "feedforward": {**_SMALL, "gate": "feedforward"},
    "float": {**_SMALL, "stream": "float"},
    "odd": {"image": (11, 13), "widths": (17, 3), "depth": 1, "gate_width": 13, "classes": 1},
    "pooled": {**_SMALL, "image": (20, 16), "stem7": True, "channels": 1},
    "static8": {**_SMALL, "options": (8,), "first": 8},
    "uneven": {**_SMALL, "image": (20, 17), "stem7": True, "uneven": True},
    "static_full": {**_SMALL, "options": ("full",), "stream": "float"},
}


def missing_tools() -> str:
    """What a native build lacks here; empty if nothing."""
    if compiler() is None:
        return "no C++ compiler (c++, g++ or clang++, or CXX)"
    return "" if _tool("cmake") else "no cmake: pip install cmake ninja"


def compiler() -> str | None:
    """The C++ compiler that CMake would take."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _tool(name: str) -> str | None:
    """A program of this environment, or of the system."""
    own = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([own, os.environ.get("PATH", "")]))


def build(kind: Kind, *targets: str, definitions: tuple[str, ...] = (), name: str = "") -> Path:
    """Builds targets into build/native-KIND and returns that folder's `native`.

    Args:
        kind: The sanitizer.
        targets: CMake's names of them.
        definitions: More of CMake's -D options.
        name: Of the folder, if not the kind's.
    """
    folder = ROOT / "build" / f"native-{name or kind}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = str(len(os.sched_getaffinity(0)))
    cmake = _tool("cmake")
    assert cmake is not None
    with (folder / "lock").open("w") as lock:  # tests of one build may be in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure(kind, folder, definitions)
        _check([cmake, "--build", str(folder), "--parallel", jobs, "--target", *targets])
    return folder / "native"


def configure(kind: Kind, folder: Path, definitions: tuple[str, ...] = ()) -> Path:
    """Has CMake prepare a build in a folder, and returns it."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    assert cmake is not None
    options = [
        "-DFRACSKIP_TESTS=ON",
        "-DFRACSKIP_PYTHON=OFF",
        f"-DFRACSKIP_SANITIZE={SANITIZERS[kind]}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
        *(f"-D{definition}" for definition in definitions),
    ]
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _check([cmake, "-S", str(ROOT), "-B", str(folder), *options])
    return folder


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def run(command: list[str]) -> str:
    """Runs a driver and returns what it prints; its report, if it fails, becomes the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr and (setarch := shutil.which("setarch")):
        # Older ThreadSanitizers do not know the addresses that newer kernels give out at random.
        done = subprocess.run([setarch, "-R", *command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done.stdout


def write_seeds(folder: Path) -> Path:
    """Writes a bundle of every shape, and cascades: of networks of several sizes, and of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, keywords in SEEDS.items():
        (folder / f"{name}.fsk").write_bytes(random_bundle(1, **keywords))
    twins = [random_bundle(seed, **SEEDS[name]) for seed, name in ((1, "basic"), (2, "static8"))]
    (folder / "cascade.fsk").write_bytes(random_cascade(1))
    (folder / "cascade_of_one_size.fsk").write_bytes(cascade(twins).bundle())
    return folder
