"""Inference: a bundle, an engine, and images in; classes, decisions and times out.

Importing this loads no torch. The native engine needs none; the portable one does, and is loaded
when it is asked for.

Shapes: B images, L gated blocks of a network, N classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fracskip.config import ImageConfig
from fracskip.errors import BundleError, ConfigError, DataError
from fracskip.operating import Execution, Operation, Prediction, joined
from fracskip.operating.cascade import Choice
from fracskip.operating.tracking import RateTracker
from fracskip.runtime.bundle import BUNDLED, Bundle
from fracskip.runtime.cascade_bundle import CascadeBundle, read_any
from fracskip.runtime.contents import Contents
from fracskip.runtime.engines import build, check_asked
from fracskip.runtime.inputs import Images, checked_decisions, checked_images
from fracskip.runtime.operator import CONFIDENCE, Asked, CascadeOperator, checked_time
from fracskip.runtime.profiling import Profile, profile
from fracskip.runtime.timing import Times, measure, stored

HELD = 256  # images between which thresholds follow


class InferenceSession(Contents):
    """A bundle, ready to classify. Any number of threads may call `run` at once.

    A session that is pickled or copied opens the same file again, with the same arguments, where
    it arrives; a `BundleError` says if it is not there, or has changed.

    Args:
        path: A .fsk file, of a network or of a cascade, or 'bundled'.
        threads: Over which images are spread; the native engine's also share one image.
        engine: 'native', 'portable' (torch), or 'auto': native where it is installed.
        isa: The native engine's instruction set: 'auto' is the best of this processor;
            `instruction_sets` lists them.

    Attributes:
        engine: 'native' or 'portable'. What it runs: see `Contents`.

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
        self._open(None, path, threads, engine, isa)

    @classmethod
    def of(
        cls,
        bundle: Bundle | CascadeBundle,
        threads: int = 1,
        engine: Literal["auto", "native", "portable"] = "auto",
        isa: str = "auto",
    ) -> InferenceSession:
        """A session of a bundle in memory; see the class."""
        session = cls.__new__(cls)
        session._open(bundle, bundle.plan.name, threads, engine, isa)
        return session

    def _open(
        self,
        bundle: Bundle | CascadeBundle | None,
        path: str | Path,
        threads: int,
        engine: Literal["auto", "native", "portable"],
        isa: str,
    ) -> None:
        check_asked(engine, threads)
        self._in_memory = bundle is not None
        bundle = read_any(path) if bundle is None else bundle
        known = self._in_memory or str(path) in BUNDLED
        self._name = str(path) if known else str(Path(path).absolute())
        self._opened = {"threads": threads, "engine": engine, "isa": isa}
        self._hold(bundle)
        self.engine, self._engine = build(bundle, engine, isa, threads, str(path))
        self._blocks = [len(plan.gated) for plan in self.networks]
        self._times: Times | None = None
        self._operator = None if self.cascade is None else CascadeOperator(self.cascade)

    def __repr__(self) -> str:
        shape = (*self.image.size, self.image.channels)
        what = (
            f"options={self.options.labels}"
            if self.cascade is None
            else f"members={[member.network for member in self.cascade.members]}"
        )
        return (
            f"{type(self).__name__}({self._name!r}, {what}, image={shape}, "
            f"threads={self.threads}, engine={self.engine!r}, isa={self.isa!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._in_memory:
            return _opened_again, (type(self), self._bundle, self._opened)
        return _reopened, (type(self), self._name, self._opened, self.digest)

    # -- what it runs -----------------------------------------------------------------------------

    @property
    def isa(self) -> str:
        """The instruction set in use; 'torch' for the portable engine."""
        return self._engine.isa

    @property
    def threads(self) -> int:
        """How many threads a batch is spread over, or share one image."""
        return self._engine.threads

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """What executes each block's options: (block, option, one name a convolution).

        In a cascade the block's name begins with the network's number: '0/layer1.0'.
        """
        several = self.cascade is not None
        return [
            (f"{network}/{part}" if several else part, option, names)
            for network, part, option, names in self._engine.kernels()
        ]

    # -- running ----------------------------------------------------------------------------------

    def run(
        self,
        images: Images,
        *,
        budget: ArrayLike | None = None,
        latency_us: float | None = None,
        max_latency_us: float | None = None,
        max_drop: float | None = None,
        confidence: float = CONFIDENCE,
        hold: bool = False,
        decisions: ArrayLike | None = None,
        time_gates: bool = False,
        normalised: bool = False,
    ) -> Prediction[NDArray[Any]]:
        """Classifies images, each by its own allocation.

        Args:
            images: uint8 pixels (B, H, W, C), or float32 of that shape that are normalised
                already, (pixel / 255 - mean) / std, which their range is checked for.
            budget: Of a network: target computation share in (0, 1], one for all or (B,), if it
                takes one (None: what it was trained for). Of a cascade: mean BitOps of an image
                over those of its last member alone (None: 1).
            latency_us: In place of it, the mean time of an image in microseconds.
            max_latency_us: The longest time that any image may take by what was measured; a cascade
                then does without members that would pass it.
            max_drop: In place of both, of a cascade: how far accuracy may be under the last
                member's, such as 0.005; the cheapest point is taken for which that is sure.
            confidence: Of that promise, over validation images.
            hold: A cascade moves its thresholds so that as many images are escalated as the budget
                pays for, whatever images come: see `tracker`.
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
        if self.cascade is not None:
            if decisions is not None or time_gates:
                raise ConfigError(
                    "decisions and time_gates are for one network: run a member's own bundle"
                )
            choice = self.choose(
                budget, latency_us=latency_us, max_latency_us=max_latency_us, max_drop=max_drop,
                confidence=confidence,
            )  # fmt: skip
            return self.run_choice(images, choice, hold=hold, normalised=normalised)
        images = self._checked(images, normalised)
        count = len(images)
        if max_drop is not None or hold:
            raise ConfigError(
                "max_drop and hold are for cascades, and this is one network: make one of it with "
                "fracskip.cascade"
            )
        if decisions is not None:
            return self.execute(
                images, self.alone(None, count, forced=True),
                checked_decisions(decisions, count, self.plan), time_gates,
            )  # fmt: skip
        if latency_us is not None or max_latency_us is not None:
            budget = self._budget_in_time(budget, latency_us, max_latency_us)
        return self.execute(images, self._operation(budget, count), None, time_gates)

    def _operation(self, budget: ArrayLike | None, count: int) -> Operation:
        """How B images are answered at a budget."""
        if self._operator is not None:
            choice = self.choose(budget)
            return self._operator.operation(choice, choice.thresholds, count)
        return self.plan.operating_points.at(budget, count, self.plan.budget_input)

    def _checked(self, images: Images, normalised: bool) -> Images:
        """Images as the engine takes them; see `run`."""
        images = checked_images(images, self.image, normalised)
        if images.dtype != np.uint8 and len({_input(plan.image) for plan in self.networks}) > 1:
            raise DataError(
                "floats do not fit: this cascade's members take images of several sizes, or "
                "normalised in several ways; give uint8 pixels, of which it makes each"
            )
        return images

    def execute(
        self,
        images: Images,
        operation: Operation,
        forced: NDArray[np.uint8] | None = None,
        time_gates: bool = False,
        scores: list[NDArray[np.float32]] | None = None,
        profile: Sequence[NDArray[np.float64]] = (),
    ) -> Prediction[NDArray[Any]]:
        """Runs checked images as an operation says.

        Args:
            images: See `checked_images`.
            operation: The members and thresholds.
            forced: Decisions of the one member, (B, L).
            time_gates: See `run`; of one member.
            scores: Given empty, it gets each member's scores (B,), NaN where it saw no image.
            profile: Of each network, what steps took is added to; see `fracskip.runtime.profiling`.
        """
        count, members = len(images), operation.members
        logits = np.empty((count, len(self.class_names)), np.float32)
        chosen = [np.empty((count, self._blocks[m.network]), np.uint8) for m in members]
        latency_us = np.empty(count, np.float32)
        answered = np.empty(count, np.uint8)
        gate_us = np.empty(chosen[0].shape, np.float32) if time_gates else None
        if scores is not None:
            scores.extend(np.empty(count, np.float32) for _ in members)
        self._engine.run(
            images,
            logits,
            latency_us,
            networks=[member.network for member in members],
            decisions=chosen,
            budgets=[member.budget for member in members],
            # One for all is in the plan.
            multipliers=[m.multiplier if m.multiplier.ndim else None for m in members],
            thresholds=list(operation.thresholds),
            temperatures=[member.temperature for member in members],
            score=operation.score,
            scores=scores or [],
            answered=answered,
            forced=forced,
            gate_us=gate_us,
            averaged=operation.averaged,
            profile=profile,
        )
        self._check_logits(logits)
        executions: list[Execution[NDArray[Any]]] = []
        for place, (member, decided) in enumerate(zip(members, chosen, strict=True)):
            rows = np.flatnonzero(answered >= place) if place else np.arange(count)
            executions.append(Execution(rows, decided[rows] if place else decided, member.network))
        cost = self.costs(executions, count)
        return Prediction(logits, cost, tuple(executions), latency_us=latency_us, gate_us=gate_us)

    def _check_logits(self, logits: NDArray[np.float32]) -> None:
        if not np.isfinite(logits).all():
            bad = np.flatnonzero(~np.isfinite(logits).all(1))
            raise BundleError(
                f"logits of {len(bad)} of {len(logits)} images are NaN or infinite, the first is "
                f"image {bad[0]}: weights of {self._name} are too large for float32; "
                "export a network that evaluates well"
            )

    # -- operating points of a cascade ------------------------------------------------------------

    def choose(
        self,
        budget: ArrayLike | None = None,
        *,
        latency_us: float | None = None,
        max_latency_us: float | None = None,
        max_drop: float | None = None,
        confidence: float = CONFIDENCE,
    ) -> Choice:
        """The operating point of a cascade that `run` takes for the same arguments.

        Raises:
            ConfigError: if it has none such: the range that it has is said.
        """
        if self._operator is None:
            raise ConfigError("this session runs one network, which has no members to choose from")
        timed = latency_us is not None or max_latency_us is not None
        times = self.times if timed else None
        asked = Asked(budget, latency_us, max_latency_us, max_drop, confidence)
        return self._operator.choose(asked, times)

    def tracker(self, choice: Choice) -> RateTracker | None:
        """What `hold` has seen at an operating point, and how far inputs drifted; None before."""
        return None if self._operator is None else self._operator.trackers.get(choice)

    def run_choice(
        self, images: Images, choice: Choice, *, hold: bool = False, normalised: bool = False
    ) -> Prediction[NDArray[Any]]:
        """Classifies images at an operating point of a cascade, from `choose`; see `run`."""
        if self._operator is None:
            raise ConfigError("this session runs one network, which has no members to choose from")
        images = self._checked(images, normalised)
        if not hold or len(choice.chain) == 1 or not len(images):
            operation = self._operator.operation(choice, choice.thresholds, len(images))
            return self.execute(images, operation)
        tracker, found = self._operator.tracker(choice), []
        # Thresholds follow between batches alone, so large ones are cut.
        for begin in range(0, len(images), HELD):
            batch = images[begin : begin + HELD]
            operation = self._operator.operation(choice, tracker.thresholds, len(batch))
            scores: list[NDArray[np.float32]] = []
            found.append(self.execute(batch, operation, scores=scores))
            tracker.observe(scores)
        return joined(found)

    # -- time -------------------------------------------------------------------------------------

    @property
    def times(self) -> Times:
        """What members, or a network's options, take on this machine; measured if it never was."""
        if self._times is None:
            self._times = stored(self)
        if self._times is None:
            warnings.warn(
                "this bundle was never timed on this machine: it is now, for a second or two; "
                "fracskip tune FILE, or session.measure(), does it beforehand",
                stacklevel=4,
            )
            self.measure()
        assert self._times is not None
        return self._times

    def measure(self) -> Times:
        """Times the members, or a network's options, on this machine, and keeps that in the cache.

        One image at a time, on one thread; a second or two. The times belong to this bundle's
        digest, this processor and instruction set.
        """
        self._times = measure(self)
        return self._times

    def steps(self, network: int = 0) -> list[tuple[str, str, str, int, int]]:
        """All steps of all options: (part, option, kernel, MACs, bytes); see `runtime.profiling`.

        Args:
            network: Which of a cascade's.

        Raises:
            ConfigError: if this session runs on the portable engine.
        """
        return self._engine.steps(network)

    def profile_steps(
        self,
        images: Images,
        *,
        budget: ArrayLike | None = None,
        decisions: ArrayLike | None = None,
        rounds: int = 10,
        roofline: bool = False,
    ) -> Profile:
        """Times every step of the networks, while images are run one after the other.

        Args:
            images: See `run`.
            budget: See `run`.
            decisions: See `run`; of a network.
            rounds: Over the images, after one that warms up: medians are taken.
            roofline: Also measure what the processor reaches, in a quarter of a second.

        Raises:
            DataError: if there are no images, or they do not fit.
            ConfigError: if budget or decisions do not fit, or this session runs on the portable
                engine.
        """
        images = self._checked(images, normalised=False)
        count, forced = len(images), None
        operation = self._operation(budget, count) if decisions is None else None
        if decisions is not None:
            forced = checked_decisions(decisions, count, self.plan)
            operation = self.alone(None, count, forced=True)
        assert operation is not None
        return profile(self, images, operation, forced, rounds=rounds, roofline=roofline)

    def _budget_in_time(
        self, budget: ArrayLike | None, latency_us: float | None, max_latency_us: float | None
    ) -> float:
        """The largest budget of a network whose images take so long on average."""
        if budget is not None:
            raise ConfigError("give one of budget and latency_us")
        if max_latency_us is not None:
            raise ConfigError(
                "max_latency_us is for cascades, whose members have a time each; give latency_us"
            )
        assert latency_us is not None
        reach = self.plan.operating_points.changed(cascade=()).budgets(self.plan.budget_input)
        if reach is None:
            raise ConfigError("this network was trained for one budget and takes no latency_us")
        limit = checked_time(latency_us, "latency_us")
        return self.times.budget_within(limit, reach, self.options.costs)


def _input(image: ImageConfig) -> tuple[Any, ...]:
    """What makes normalised images of two networks the same."""
    return image.size, image.mean, image.std


def _reopened(
    kind: type[InferenceSession], name: str, opened: dict[str, Any], digest: str
) -> InferenceSession:
    session = kind(name, **opened)
    if session.digest != digest:
        raise BundleError(
            f"{name} has changed since the session was pickled or copied: open it anew"
        )
    return session


def _opened_again(
    kind: type[InferenceSession], bundle: Bundle | CascadeBundle, opened: dict[str, Any]
) -> InferenceSession:
    return kind.of(bundle, **opened)
