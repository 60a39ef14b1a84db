"""Where to compute: the device, its precision, its threads."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from fracskip.errors import ConfigError
from fracskip.version import __version__


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to use: a GPU where there is one, unless told otherwise.

    Args:
        wanted: 'auto', 'cpu' or 'cuda'.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, torch finds no GPU: use 'auto' or 'cpu'")
    return torch.device(wanted)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic; emulating it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    )


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether a run computes in bfloat16: 'auto' where the device does, 'bf16' always, 'off'."""
    return amp == "bf16" or (amp == "auto" and computes_in_bf16(device))


def describe(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        name = models[0] if models else name
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "fracskip": __version__}
    for package in ("torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
