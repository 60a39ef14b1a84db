"""Inference: a bundle, an engine, and images in; classes, decisions and times out.

Importing this loads no torch. The native engine needs none; the portable one does, and is loaded
when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.config import ImageConfig
from fracskip.cost import CostReport, NetworkProfile, account
from fracskip.errors import BundleError, ConfigError, MissingExtraError
from fracskip.operating import Execution, Operation, Prediction, Setting
from fracskip.options import Option, OptionSet
from fracskip.runtime.bundle import BUNDLED, Bundle, read_bundle
from fracskip.runtime.inputs import Images, checked_decisions, checked_images
from fracskip.runtime.plan import Plan

ENGINES = ("auto", "native", "portable")
MAX_THREADS = 256


class Engine(Protocol):
    """What executes a bundle: `fracskip.runtime._native.Engine` or the portable one."""

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
        forced: NDArray[np.uint8] | None = None,
        gate_us: NDArray[np.float32] | None = None,
    ) -> None:
        """Writes answers in place."""
        ...


class InferenceSession:
    """A bundle, ready to classify. Any number of threads may call `run` at once.

    A session that is pickled or copied opens the same file again, with the same arguments, where
    it arrives; a `BundleError` says if it is not there, or has changed.

    Args:
        path: A .fsk file, or 'bundled'.
        threads: Over which the images of a batch are spread.
        engine: 'native', 'portable' (torch), or 'auto': native where it is installed.
        isa: The native engine's instruction set: 'auto' is the best of this processor;
            `instruction_sets` lists them.

    Attributes:
        plan: What the network is.
        digest: Of the bundle.
        engine: 'native' or 'portable'.

    Raises:
        BundleError: if the file is no sound bundle.
        ConfigError: if threads, engine or isa are none that there is.
        MissingExtraError: if the engine is not installed.

    >>> session = InferenceSession("bundled")  # doctest: +SKIP
    >>> prediction = session.run(images)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        engine: Literal["auto", "native", "portable"] = "auto",
        isa: str = "auto",
    ) -> None:
        if engine not in ENGINES:
            raise ConfigError(f"engine {engine!r} is unknown: use one of {', '.join(ENGINES)}")
        if isinstance(threads, bool) or not isinstance(threads, int):
            raise ConfigError(f"threads {threads!r} is no whole number: use 1 to {MAX_THREADS}")
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"threads {threads} is out of range: use 1 to {MAX_THREADS}")
        bundle = read_bundle(path)
        native = _native()
        if engine == "native" and native is None:
            raise MissingExtraError(
                "this installation has no native engine (it was built without a C++17 compiler): "
                "install one and reinstall fracskip, or use engine='portable'"
            )
        name = str(path) if str(path) in BUNDLED else str(Path(path).absolute())
        self._opened = {"path": name, "threads": threads, "engine": engine, "isa": isa}
        self.plan: Plan = bundle.plan
        self.digest = bundle.digest
        self._costs = np.array(self.plan.option_set.costs, np.float32)
        self._engine: Engine
        if native is not None and engine != "portable":
            self.engine = "native"
            self._engine = _build_native(native, bundle, isa, threads, path)
        else:
            self.engine = "portable"
            self._engine = _build_portable(bundle, isa, threads)

    def __repr__(self) -> str:
        shape = (*self.image.size, self.image.channels)
        return (
            f"{type(self).__name__}({self._opened['path']!r}, options={self.options.labels}, "
            f"image={shape}, threads={self.threads}, engine={self.engine!r}, isa={self.isa!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self._opened, self.digest)

    # -- what the network is ----------------------------------------------------------------------

    @property
    def options(self) -> OptionSet:
        """What a decision's index stands for."""
        return self.plan.option_set

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a logit's index stands for."""
        return self.plan.class_names

    @property
    def image(self) -> ImageConfig:
        """Size, channels and normalisation of its images."""
        return self.plan.image

    @property
    def profile(self) -> NetworkProfile:
        """Its MACs."""
        return self.plan.cost

    @property
    def isa(self) -> str:
        """The instruction set in use; 'torch' for the portable engine."""
        return self._engine.isa

    @property
    def threads(self) -> int:
        """How many threads a batch is spread over."""
        return self._engine.threads

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """What executes each block's options: (block, option, one name a convolution)."""
        return [(block, option, names) for _, block, option, names in self._engine.kernels()]

    def cost(self, executed: Prediction[NDArray[Any]] | NDArray[np.integer]) -> CostReport:
        """Prices what was executed: see `fracskip.cost.account`.

        Args:
            executed: A prediction, or the decisions (B, L) of one member alone.
        """
        if isinstance(executed, Prediction):
            return account(executed.executions, self.options, self.profile)
        return account(executed, self.options, self.profile)

    def forced(self, option: Option | int | str, images: int) -> NDArray[np.uint8]:
        """Decisions (B, L) that give every block the same option.

        Raises:
            ConfigError: if the option is not in the set.
        """
        shape = (images, len(self.plan.gated_names))
        return np.full(shape, self.options.index(option), dtype=np.uint8)

    # -- running ----------------------------------------------------------------------------------

    def run(
        self,
        images: Images,
        *,
        budget: ArrayLike | None = None,
        decisions: ArrayLike | None = None,
        time_gates: bool = False,
        normalised: bool = False,
    ) -> Prediction[NDArray[Any]]:
        """Classifies images, each by its own allocation.

        Args:
            images: uint8 pixels (B, H, W, C), or float32 of that shape that are normalised
                already, (pixel / 255 - mean) / std, which their range is checked for.
            budget: Target computation share in (0, 1], one for all or (B,), if the network takes
                one (None: what it was trained for).
            decisions: Option indices (B, L) to execute instead of asking the gate, by one member;
                no budget is needed.
            time_gates: Read a clock around every gate: `gate_us` of the prediction. Two readings a
                gate, of some 20 ns each, one of which counts as the gate's.
            normalised: Floats are normalised, whatever their range is.

        Raises:
            DataError: if the images do not fit, or are pixels as floats.
            ConfigError: if budget or decisions do not fit.
            BundleError: if logits are NaN or infinite: weights can be finite and too large.
        """
        images = checked_images(images, self.image, normalised)
        count = len(images)
        forced = None if decisions is None else checked_decisions(decisions, count, self.plan)
        if budget is None and forced is not None:
            operation = Operation(())
        else:
            operation = self.plan.operating_points.at(budget, count, self.plan.budget_input)
        logits = np.empty((count, self.plan.network.classes), np.float32)
        blocks = len(self.plan.gated_names)
        # Whoever decides asks no gate for anything.
        members = operation.members if forced is None else (None,)
        executed = [np.empty((count, blocks), np.uint8) for _ in members]
        answered = np.zeros(count, np.uint8)
        latency_us = np.empty(count, np.float32)
        gate_us = np.empty((count, blocks), np.float32) if time_gates else None
        self._engine.run(
            images,
            logits,
            latency_us,
            decisions=executed,
            answered=answered,
            forced=forced,
            gate_us=gate_us,
            **_chain(members, operation.threshold),
        )
        self._check_logits(logits)
        executions: list[Execution[NDArray[Any]]] = []
        cost = np.zeros(count, np.float32)
        for position, chosen in enumerate(executed):
            rows = np.flatnonzero(answered >= position)
            executions.append(Execution(rows, chosen[rows]))
            if len(rows):
                cost[rows] += self._costs[chosen[rows]].mean(1) if blocks else np.float32(1)
        return Prediction(logits, cost, tuple(executions), latency_us=latency_us, gate_us=gate_us)

    def _check_logits(self, logits: NDArray[np.float32]) -> None:
        if not np.isfinite(logits).all():
            bad = np.flatnonzero(~np.isfinite(logits).all(1))
            raise BundleError(
                f"logits of {len(bad)} of {len(logits)} images are NaN or infinite, the first is "
                f"image {bad[0]}: weights of {self._opened['path']} are too large for float32; "
                "export a network that evaluates well"
            )


def _chain(
    members: Sequence[Setting | None], threshold: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Members of one network as `Engine.run` takes them; None asks for nothing."""
    return {
        "networks": [0] * len(members),
        "budgets": [None if each is None else each.budget for each in members],
        # Without one for each image the engine has it from the plan.
        "multipliers": [
            each.multiplier if each is not None and each.multiplier.ndim else None
            for each in members
        ],
        "thresholds": [] if threshold is None or len(members) == 1 else [threshold],
        "temperatures": [1.0] * len(members),
        "score": "probability",
        "scores": [],
    }


# -- engines --------------------------------------------------------------------------------------


def _native() -> Any:
    """The extension module; None where it was not built."""
    try:
        return importlib.import_module("fracskip.runtime._native")
    except ImportError:
        return None


def instruction_sets() -> tuple[str, ...]:
    """What the native engine can use on this processor, ascending; empty without the engine."""
    native = _native()
    return () if native is None else tuple(native.isas())


def _build_native(native: Any, bundle: Bundle, isa: str, threads: int, path: str | Path) -> Engine:
    allowed = ("auto", *native.isas())
    if isa not in allowed:
        raise ConfigError(f"isa {isa!r} is not of this processor: use one of {', '.join(allowed)}")
    try:
        engine: Engine = native.Engine(bundle.data, isa, threads)
    except ValueError as error:
        raise BundleError(f"{path}: the native engine refuses it ({error})") from None
    return engine


def _build_portable(bundle: Bundle, isa: str, threads: int) -> Engine:
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
    return PortableEngine([bundle], threads)


def _reopened(
    kind: type[InferenceSession], opened: dict[str, Any], digest: str
) -> InferenceSession:
    session = kind(**opened)
    if session.digest != digest:
        raise BundleError(
            f"{opened['path']} has changed since the session was pickled or copied: open it anew"
        )
    return session
