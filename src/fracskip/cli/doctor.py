"""What this machine and this installation can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fracskip import __version__
from fracskip.bench.blocks import gate_time, kernels_by_option, option_times
from fracskip.data import DATASETS, cache_dir, load_sample
from fracskip.errors import ConfigError, FracskipError, MissingExtraError
from fracskip.machine import version_of
from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets

NOISE = 1.03  # times closer than this are the same
EXTRAS = {
    "train": ("torch",),
    "report": ("jinja2", "matplotlib"),
    "vision": ("torchvision",),
    "timm": ("timm",),
    "bench": ("onnx", "onnxruntime", "openvino"),
}
TIMED = 24  # images on which blocks are timed
CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm"),
)


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
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    present = [flag for flag in CPU_FLAGS if flag in known]
    return (
        f"{fields.get('model name', platform.machine())}, {os.cpu_count()} threads; "
        f"{', '.join(present) or 'no vector extensions known to fracskip'}"
    )


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return Finding(name, f"not installed (pip install 'fracskip[{name}]')")
    return Finding(name, ", ".join(f"{package} {version_of(package)}" for package in packages))


def _engine() -> Finding:
    known = instruction_sets()
    found = f"native ({', '.join(known)})" if known else "none was built; torch runs bundles"
    return Finding("engine", found)


def _bundled() -> list[Finding]:
    try:
        session = InferenceSession("bundled")
        sample = load_sample()
        few = sample.subset(range(100))
        right = int((session.run(few.images).predicted == few.labels).sum())
    except MissingExtraError as error:
        return [Finding("bundled network", f"cannot run: {error}")]
    except FracskipError as error:
        return [Finding("bundled network", str(error), ok=False)]
    engine = f"{session.engine}, {session.isa}"
    return [
        Finding("bundled network", f"{session.plan.name}, {session.digest[:19]}..."),
        Finding("self-test", f"{right} of 100 bundled images right ({engine})", ok=right >= 80),
        *(_kernels(session, few.images[:TIMED]) if session.engine == "native" else ()),
    ]


def _network(name: str) -> list[Finding]:
    """A network's blocks on noise: what they take does not depend on what images show.

    Raises:
        BundleError: if it is no bundle that the engine runs.
        ConfigError: if it is a cascade, has one option, or there is no native engine.
    """
    session = InferenceSession(name, engine="native")
    if session.cascade is not None:
        count = len(session.networks)
        raise ConfigError(f"{name} is a cascade of {count} networks: give the bundle of one")
    if len(session.options) < 2:
        raise ConfigError(f"{name} has one option, and so no widths to compare: give another")
    shape = (TIMED, *session.image.size, session.image.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    words = f"{session.plan.name}, {session.digest[:19]}... ({session.isa})"
    return [Finding("network", words), *_kernels(session, noise)]


def order_of(micros: dict[str, float]) -> str:
    """Whether fewer bits take less time, in words: of options of 8 bits and less, by label.

    Empty where there are none to compare.
    """
    times = sorted((int(label), time) for label, time in micros.items() if label.isdecimal())
    times = [(bits, time) for bits, time in times if bits <= 8]
    if len(times) < 2:
        return ""
    worse = [
        f"{few} longer than {many}"
        for (few, less), (many, more) in pairwise(times)
        if less > NOISE * more
    ]
    return f"; {', '.join(worse)}" if worse else "; no longer the fewer the bits"


def _kernels(session: InferenceSession, pixels: NDArray[np.uint8]) -> list[Finding]:
    """What executes each option, and what it takes: a network's blocks, measured."""
    findings = []
    for label, kernels in kernels_by_option(session).items():
        words = ", ".join(f"{name} ({count})" for name, count in sorted(kernels.items()))
        findings.append(Finding(f"kernels, {label}", words or "none: the shortcut alone"))
    for times in option_times(session, pixels):
        words = ", ".join(f"{label} {micros:.1f}" for label, micros in times.micros.items())
        found = f"µs above {times.lowest}: {words}{order_of(times.micros)}"
        findings.append(Finding(f"block, {times.shape.words}", found))
    if session.plan.gate is not None:
        findings.append(Finding("gate", f"{gate_time(session, pixels):.2f} µs"))
    return findings


def _torch() -> list[Finding]:
    from fracskip.devices import computes_in_bf16, describe, pick_device

    device = pick_device()
    kind = "bfloat16" if computes_in_bf16(device) else "float32 (no bfloat16 arithmetic)"
    return [Finding("device", describe(device)), Finding("trains in", kind)]


def examine(network: str | None = None) -> list[Finding]:
    """Examines versions, processor, extras, data sets and the bundled network, or at one network.

    Args:
        network: A bundle whose blocks are timed, instead of all else.
    """
    if network is not None:
        return [Finding("processor", _cpu()), *_network(network)]
    findings = [
        Finding("fracskip", f"{__version__}, Python {platform.python_version()}"),
        Finding("processor", _cpu()),
    ]
    torch = _torch() if importlib.util.find_spec("torch") is not None else []
    findings += [_extra(name, packages) for name, packages in EXTRAS.items()]
    findings += [*torch, _engine(), *_bundled()]
    cached = [name for name in DATASETS if (cache_dir() / name / "manifest.json").exists()]
    existing = next(folder for folder in (cache_dir(), *cache_dir().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    findings.append(
        Finding(
            "data sets", f"{', '.join(cached) or 'none'} in {cache_dir()} ({free:.0f} GiB free)"
        )
    )
    return findings
