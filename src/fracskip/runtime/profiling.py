"""What each step of a network takes, and how near that is to what the processor reaches.

A step is one kernel's work on a part of one image: a convolution, a pass over values, reading the
pixels, all gates.

Shapes: B images, L gated blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fracskip.errors import ConfigError, DataError
from fracskip.operating import Operation, Prediction
from fracskip.runtime.engines import native_module
from fracskip.runtime.inputs import Images

if TYPE_CHECKING:
    from fracskip.runtime.session import InferenceSession


@dataclass(frozen=True)
class Step:
    """One step, as often as it was executed.

    Attributes:
        network: Which of a cascade's; 0 of one network.
        part: Of the network, such as 'layer1.0'; empty for reading pixels and for gates.
        option: Of the part, such as '8'.
        kernel: What executes it, as `InferenceSession.kernels` names convolutions. A shortcut that
            is executed together with the branch's last convolution stands before it: 'a + b'.
        calls: How often all images together executed it.
        us: Of one execution: the mean over them, the median of that over rounds.
        macs: Multiply-accumulates of one execution, as the network defines them.
        bytes: Of values read and written, and of weights, in one execution.
    """

    network: int
    part: str
    option: str
    kernel: str
    calls: int
    us: float
    macs: int
    bytes: int

    @property
    def arithmetic(self) -> str | None:
        """What it multiplies, 'int8', 'fp32' or 'bf16'; None if it multiplies nothing."""
        named = (name for name in _ARITHMETIC if f"_{name}_" in self.kernel)
        return next(named, None) if self.macs else None


@dataclass(frozen=True)
class Peaks:
    """What a session's threads reach together in loops that do nothing else; None: not measured.

    Attributes:
        int8: Exact multiply-accumulates of bytes a second.
        fp32: Of float32 values.
        bf16: Of bfloat16 values, where the instruction set has them.
        read: Bytes a second, read from a buffer as large as the bundle.
    """

    int8: float | None = None
    fp32: float | None = None
    bf16: float | None = None
    read: float | None = None

    def least_us(self, step: Step) -> float | None:
        """What an execution of a step takes at these, in microseconds; None if one is missing."""
        arithmetic = step.arithmetic
        rate = 1.0 if arithmetic is None else getattr(self, arithmetic)
        if rate is None or self.read is None:
            return None
        return 1e6 * float(max(step.macs / rate, step.bytes / self.read))


_ARITHMETIC = tuple(field.name for field in fields(Peaks) if field.name != "read")


@dataclass(frozen=True)
class NetworkSteps:
    """The steps of one network.

    Attributes:
        images: How many came to it.
        steps: Those that were executed, in order.
    """

    images: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Profile:
    """What images took, step by step.

    Attributes:
        isa: The instruction set.
        threads: That share each image.
        images: B. They were run one after the other.
        rounds: Over the images, of which medians are taken.
        latency_us: Of an image, all steps and what lies between them: the mean, median over rounds.
        peaks: What the processor reaches.
        networks: One, or those of a cascade, the ones that no image came to without steps.
    """

    isa: str
    threads: int
    images: int
    rounds: int
    latency_us: float
    peaks: Peaks
    networks: tuple[NetworkSteps, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Of all networks."""
        return tuple(step for network in self.networks for step in network.steps)

    @property
    def total_us(self) -> float:
        """All steps, for an image on average."""
        return self.image_us(self.steps)

    def image_us(self, steps: Iterable[Step]) -> float:
        """What steps take of an image, on average over all images."""
        return sum(step.us * step.calls for step in steps) / self.images

    def share_of_roofline(self, steps: Iterable[Step]) -> float | None:
        """What steps would take at the peaks, over what they take; None where none were measured.

        More than 1 is possible: MACs are the network's, and Winograd's algorithm has fewer.
        """
        least = took = 0.0
        for step in steps:
            bound = self.peaks.least_us(step)
            if bound is None:
                return None
            least += step.calls * bound
            took += step.calls * step.us
        return least / took if least and took else None


def profile(
    session: InferenceSession,
    images: Images,
    operation: Operation,
    decisions: Any = None,
    *,
    rounds: int = 10,
    roofline: bool = False,
) -> Profile:
    """Times every step; see `InferenceSession.profile_steps`.

    Args:
        session: On the native engine.
        images: Checked ones (B, H, W, C).
        operation: How they are answered.
        decisions: To execute in place of the gates', (B, L), or None.
        rounds: Over the images.
        roofline: Also measure `Peaks`.
    """
    if not len(images):
        raise DataError("no images to profile: give one at least")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"rounds {rounds!r} is given: a whole number from 1 is needed")
    known = [session.steps(network) for network in range(len(session.networks))]
    took: list[list[Any]] = [[] for _ in known]
    latencies = []
    for _ in range(1 + rounds):
        totals = [np.zeros((len(rows), 2)) for rows in known]
        found = session.execute(images, operation, decisions, profile=totals)
        assert found.latency_us is not None
        latencies.append(found.latency_us.mean())
        for times, total in zip(took, totals, strict=True):
            times.append(total)
    networks = []
    for network, (rows, times) in enumerate(zip(known, took, strict=True)):
        calls = times[0][:, 1].astype(int)
        # The first round warms up. Whatever was never executed stays at 0 and is left out.
        micros = np.median([each[:, 0] for each in times[1:]], axis=0) / np.maximum(calls, 1)
        steps = tuple(
            Step(network, part, option, kernel, int(count), float(us), macs, size)
            for (part, option, kernel, macs, size), count, us in zip(
                rows, calls, micros, strict=True
            )
            if count
        )
        networks.append(NetworkSteps(_came_to(network, found), steps))
    return Profile(
        isa=session.isa,
        threads=session.threads,
        images=len(images),
        rounds=rounds,
        latency_us=float(np.median(latencies[1:])),
        peaks=measure_peaks(session) if roofline else Peaks(),
        networks=tuple(networks),
    )


def measure_peaks(session: InferenceSession) -> Peaks:
    """What the processor reaches with a session's instruction set and threads: in 0.2 seconds."""
    return Peaks(**native_module().peaks(session.isa, session.bytes, session.threads))


def _came_to(network: int, found: Prediction[Any]) -> int:
    rows = [each.rows for each in found.executions if each.network == network]
    return len(np.unique(np.concatenate(rows))) if rows else 0
