"""Under what conditions a record came about: processor, load, versions."""

from __future__ import annotations

import os
import platform
from typing import Any

from fracskip.machine import cores, version_of, versions

FLAGS = (
    *("sse4_1", "avx", "fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm"),
)
PACKAGES = ("onnx", "onnxruntime", "openvino", "nncf")
# Another busy process for every four cores shows in the medians.
LOAD_PER_CORE = 0.25


def load_average() -> list[float]:
    """Running processes on average over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def processor() -> tuple[str, list[str]]:
    """Name of the processor, and which of the vector extensions it has that matter here."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in FLAGS if flag in known]


def has_vnni(flags: list[str]) -> bool:
    """Whether products of bytes can be summed without saturating."""
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))


def describe(load_before: list[float]) -> dict[str, Any]:
    """The machine as the record has it, at the end of the run.

    Args:
        load_before: The load average when the run began.
    """
    name, flags = processor()
    others = load_before[0]
    return {
        "processor": name,
        "flags": flags,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores_in_all": os.cpu_count() or 1,
        "cores_used": cores(),
        "load_before": load_before,
        "load_after": load_average(),
        "is_loaded": others > LOAD_PER_CORE * cores(),
    }


def all_versions() -> dict[str, str]:
    """Versions of everything that takes part."""
    return {**versions(), **{package: version_of(package) for package in PACKAGES}}
