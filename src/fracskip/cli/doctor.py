"""What this machine and this installation can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata

from fracskip import __version__
from fracskip.data import DATASETS, cache_dir, load_sample
from fracskip.errors import FracskipError

EXTRAS = {
    "train": ("torch",),
    "report": ("jinja2", "matplotlib"),
    "vision": ("torchvision",),
    "timm": ("timm",),
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: What was looked at.
        found: What was found.
        ok: False if the user has something to mend.
    """

    what: str
    found: str
    ok: bool = True


def _cpu() -> str:
    """Name and the instruction sets that matter here."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    known = set(fields.get("flags", "").split())
    present = [flag for flag in CPU_FLAGS if flag in known]
    return (
        f"{fields.get('model name', platform.machine())}, {os.cpu_count()} threads; "
        f"{', '.join(present) or 'no vector extensions known to fracskip'}"
    )


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return Finding(name, f"not installed (pip install 'fracskip[{name}]')")
    return Finding(
        name, ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    )


def _bundled() -> list[Finding]:
    from fracskip.checkpoint import load
    from fracskip.evaluation import predict

    try:
        net = load("bundled")
        sample = load_sample()
        few = sample.subset(range(100))
        right = int((predict(net, few.images).predicted == few.labels).sum())
    except FracskipError as error:
        return [Finding("bundled network", str(error), ok=False)]
    return [
        Finding("bundled network", f"{net.spec.model.name}, {net.digest[:19]}..."),
        Finding("self-test", f"{right} of 100 bundled images right", ok=right >= 80),
    ]


def _torch() -> list[Finding]:
    from fracskip.devices import computes_in_bf16, describe, pick_device

    device = pick_device()
    kind = "bfloat16" if computes_in_bf16(device) else "float32 (no bfloat16 arithmetic)"
    return [Finding("device", describe(device)), Finding("trains in", kind)]


def examine() -> list[Finding]:
    """Looks at versions, processor, extras, data sets and the bundled network."""
    findings = [
        Finding("fracskip", f"{__version__}, Python {platform.python_version()}"),
        Finding("processor", _cpu()),
    ]
    findings += [_extra(name, packages) for name, packages in EXTRAS.items()]
    if importlib.util.find_spec("torch") is not None:
        findings += _torch() + _bundled()
    cached = [name for name in DATASETS if (cache_dir() / name / "manifest.json").exists()]
    existing = next(folder for folder in (cache_dir(), *cache_dir().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    findings.append(
        Finding(
            "data sets", f"{', '.join(cached) or 'none'} in {cache_dir()} ({free:.0f} GiB free)"
        )
    )
    return findings
