"""The machine and what is installed on it, in words. Needs no torch."""

from __future__ import annotations

import os
import platform
import sys
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
    found = {package: version_of(package) for package in ("torch", "numpy")}
    return {"python": platform.python_version(), "fracskip": __version__, **found}


def version_of(package: str) -> str:
    """A package's version or 'not installed'; with its build (`+cu130`), once it is imported.

    A wheel's metadata may leave the build out, as that of torch from PyPI does.
    """
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
    own = str(getattr(sys.modules.get(package), "__version__", found))
    return own if own.startswith(f"{found}+") else found
