"""The native engine (native/src/bindings.cpp)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class BundleError(ValueError):
    """The bytes are no sound bundle."""

def isas() -> list[str]:
    """Names of the instruction sets that this CPU can run, ascending."""

def resize(
    images: NDArray[np.uint8], height: int, width: int, isa: str = "auto"
) -> NDArray[np.uint8]:
    """Images (B, H, W, C) brought to a smaller size, as an engine does for smaller networks.

    The same pixels as `fracskip.data.resampling.resize` gives.
    """

def peaks(isa: str, bytes: int, threads: int = 1) -> dict[str, float]:
    """What threads reach together with an instruction set, measured in a quarter of a second.

    Multiply-accumulates a second of 'int8' (exact), 'fp32' and 'bf16', and bytes a second that are
    'read' of a buffer of so many; only what the set has, which is nothing for plain loops.
    """

class Engine:
    """Runs the networks of a bundle. Any number of threads may call `run` at once.

    The digest is the caller's to verify; everything else is checked.
    """

    def __init__(self, data: bytes, isa: str = "auto", threads: int = 1) -> None: ...
    @property
    def networks(self) -> int:
        """How many networks the bundle holds."""

    def gated_blocks(self, network: int) -> int: ...
    def options(self, network: int) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str:
        """The instruction set that is used."""

    def kernels(self) -> list[tuple[int, str, str, list[str]]]:
        """(network, part, option, kernels) of what runs each option."""

    def steps(self, network: int) -> list[tuple[str, str, str, int, int]]:
        """(part, option, kernel, MACs, bytes) of each row of a profile."""

    def run(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
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
        averaged: bool = False,
        profile: Sequence[NDArray[np.float64]] = (),
    ) -> None:
        """Classifies images (B, H, W, C) by a chain of members.

        See `fracskip.runtime.portable.PortableEngine.run` for the arguments.
        """
