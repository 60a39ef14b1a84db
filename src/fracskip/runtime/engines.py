"""The two engines: the native one, and the portable one in torch; what a session asks of both."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fracskip.data.resampling import resize
from fracskip.errors import BundleError, ConfigError, MissingExtraError
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.cascade_bundle import CascadeBundle
from fracskip.runtime.inputs import Images

ENGINES = ("auto", "native", "portable")
MAX_THREADS = 256


class Engine(Protocol):
    """What executes bundles: `fracskip.runtime._native.Engine` or the portable one."""

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        ...

    @property
    def threads(self) -> int:
        """How many threads it uses."""
        ...

    def kernels(self) -> list[tuple[int, str, str, list[str]]]:
        """(network, block, option, what executes each convolution)."""
        ...

    def steps(self, network: int) -> list[tuple[str, str, str, int, int]]:
        """(part, option, kernel, MACs, bytes) of each row of a profile."""
        ...

    def run(
        self,
        images: Images,
        logits: NDArray[np.float32],
        latency_us: NDArray[np.float32],
        *,
        networks: Sequence[int],
        decisions: Sequence[NDArray[np.uint8]],
        budgets: Sequence[NDArray[np.float32] | None],
        multipliers: Sequence[NDArray[np.float32] | None],
        thresholds: Sequence[NDArray[np.float32]],
        temperatures: Sequence[float],
        score: str,
        scores: Sequence[NDArray[np.float32]],
        answered: NDArray[np.uint8],
        forced: NDArray[np.uint8] | None,
        gate_us: NDArray[np.float32] | None,
        averaged: bool,
        profile: Sequence[NDArray[np.float64]],
    ) -> None:
        """Runs a chain of networks on B images and writes answers in place.

        Args:
            images: uint8 or normalised float32 (B, H, W, C), of the largest network's size.
            logits: Of the member that answers, (B, N).
            latency_us: (B,).
            networks: Of each member, in order. A network that follows itself goes on from what its
                first gated block sees.
            decisions: Of each member, (B, L): rows of images that it sees are written.
            budgets: Computation shares (B,), for gates that take them.
            multipliers: Of cost (B,); the plan's for all if not given.
            thresholds: An image whose score is less is escalated to the next member, (B,).
            temperatures: Of the scores.
            score: Which; see `fracskip.operating.scores.score_of`.
            scores: Of each member (B,), NaN where it sees no image; or empty.
            answered: Which member answered, (B,).
            forced: Decisions to execute instead of asking the gate (B, L), by one member.
            gate_us: What each gate took (B, L), of one member; or None.
            averaged: Answers are means over the members so far, of logits over temperatures; else
                the last member's logits.
            profile: Of each network, (rows, 2): microseconds and calls of each row of `steps`
                are added; or empty. Images then run one after the other.
        """
        ...


def native_module() -> Any:
    """The extension module; None where it was not built."""
    try:
        return importlib.import_module("fracskip.runtime._native")
    except ImportError:
        return None


def instruction_sets() -> tuple[str, ...]:
    """What the native engine can use on this processor, ascending; empty without the engine."""
    native = native_module()
    return () if native is None else tuple(native.isas())


def resized(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Images (B, H, W, C) at another size: `fracskip.data.resampling.resize`, natively if possible.

    Raises:
        DataError: if they are no pixels, or too small.
    """
    native = native_module()
    fits = images.dtype == np.uint8 and images.ndim == 4
    if (
        native is None
        or not fits
        or not all(1 <= s <= o for s, o in zip(size, images.shape[1:3], strict=True))
    ):
        return resize(images, size)
    found: NDArray[np.uint8] = native.resize(np.ascontiguousarray(images), *size)
    return found


def check_asked(engine: str, threads: int) -> None:
    """Raises a ConfigError if there is no such engine, or it can't have so many threads."""
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is unknown: use one of {', '.join(ENGINES)}")
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise ConfigError(f"threads {threads!r} is no whole number: use 1 to {MAX_THREADS}")
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads {threads} is out of range: use 1 to {MAX_THREADS}")


def build(
    bundle: Bundle | CascadeBundle, engine: str, isa: str, threads: int, name: str
) -> tuple[str, Engine]:
    """The engine that was asked for, of a bundle, and which one that is.

    Raises:
        BundleError: if the native engine refuses the bundle.
        ConfigError: if the instruction set is none that there is.
        MissingExtraError: if the engine is not installed.
    """
    native = native_module()
    if engine == "native" and native is None:
        raise MissingExtraError(
            "this installation has no native engine (it was built without a C++17 compiler): "
            "install one and reinstall fracskip, or use engine='portable'"
        )
    if native is not None and engine != "portable":
        return "native", build_native(native, bundle.data, isa, threads, name)
    parts = (bundle,) if isinstance(bundle, Bundle) else bundle.networks
    return "portable", build_portable(parts, isa, threads)


def build_native(native: Any, data: bytes, isa: str, threads: int, name: str) -> Engine:
    """The native engine of a bundle's bytes.

    Raises:
        BundleError: if it refuses them.
        ConfigError: if the instruction set is none of this processor.
    """
    allowed = ("auto", *native.isas())
    if isa not in allowed:
        raise ConfigError(f"isa {isa!r} is not of this processor: use one of {', '.join(allowed)}")
    try:
        engine: Engine = native.Engine(data, isa, threads)
    except ValueError as error:
        raise BundleError(f"{name}: the native engine refuses it ({error})") from None
    return engine


def build_portable(bundles: Sequence[Bundle], isa: str, threads: int) -> Engine:
    """The portable engine of one network, or of a cascade's.

    Raises:
        ConfigError: if an instruction set is asked for.
        MissingExtraError: if torch is not installed.
    """
    if isa != "auto":
        raise ConfigError(f"isa {isa!r} is for the native engine; the portable one takes 'auto'")
    try:
        from fracskip.runtime.portable import PortableEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            "the portable engine needs torch: pip install 'fracskip[train]', or reinstall fracskip "
            "where there is a C++17 compiler to have the native engine"
        ) from None
    return PortableEngine(bundles, threads)
