"""The machine and what is installed on it, in words. Needs no torch."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from fracskip.version import __version__


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_processor(threads: int) -> str:
    """The processor's name, and how many of its threads are used."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        name = models[0] if models else name
    except OSError:
        pass
    return f"{name}, {threads} of {os.cpu_count()} threads"


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "fracskip": __version__}
    for package in ("torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
