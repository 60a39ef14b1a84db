"""Builds the native drivers for aarch64, and runs them on processors that QEMU emulates."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.native_build import build, missing_tools, run

# What each emulated processor is able to run, its best last; `max` has all that QEMU knows.
SETS: dict[str, tuple[str, ...]] = {
    "cortex-a72": ("scalar", "neon"),
    "cortex-a76": ("scalar", "neon", "neon_dotprod"),
    "neoverse-n1": ("scalar", "neon", "neon_dotprod"),
    "max": ("scalar", "neon", "neon_dotprod", "neon_i8mm"),
}

GCC = "aarch64-linux-gnu-g++"
_QEMU = ("qemu-aarch64", "qemu-aarch64-static")


def missing_cross_tools() -> str:
    """What a build for aarch64 lacks here, or to run it; empty if nothing."""
    if missing := missing_tools():
        return missing
    if shutil.which(GCC) is None:
        return "no compiler for aarch64: apt-get install g++-aarch64-linux-gnu"
    if emulator() is None:
        return "no emulator of aarch64: apt-get install qemu-user"
    return ""


def emulator() -> str | None:
    """QEMU, where there is one."""
    return next((found for name in _QEMU if (found := shutil.which(name))), None)


def cross_definitions() -> tuple[str, ...]:
    """CMake's definitions of an optimised, static build for aarch64."""
    return (
        "CMAKE_SYSTEM_NAME=Linux",
        "CMAKE_SYSTEM_PROCESSOR=aarch64",
        f"CMAKE_CXX_COMPILER={shutil.which(GCC)}",
        "CMAKE_EXE_LINKER_FLAGS=-static",
        "CMAKE_BUILD_TYPE=Release",
        "FRACSKIP_WERROR=ON",
    )


def cross_build(*targets: str) -> Path:
    """Builds targets for aarch64 and returns the build's folder."""
    return build("plain", *targets, definitions=cross_definitions(), name="aarch64").parent


def emulated(cpu: str, command: list[str], *options: str) -> str:
    """Runs a driver on an emulated processor and returns what it prints."""
    qemu = emulator()
    assert qemu is not None
    return run([qemu, "-cpu", cpu, *options, *command])
