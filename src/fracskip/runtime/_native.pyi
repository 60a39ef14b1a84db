"""The native engine (native/src/bindings.cpp)."""

import numpy as np
from numpy.typing import NDArray

class BundleError(ValueError):
    """The bytes are no sound bundle."""

def isas() -> list[str]:
    """Names of the instruction sets that this CPU can run, ascending."""

class Engine:
    """Runs a bundle. Any number of threads may call `run` at once.

    The digest is the caller's to verify; everything else is checked.
    """

    def __init__(self, data: bytes, isa: str = "auto", threads: int = 1) -> None: ...
    @property
    def gated_blocks(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def options(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str:
        """The instruction set that is used."""

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """(block, option, kernels) of what runs each option."""

    def run(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        logits: NDArray[np.float32],
        decisions: NDArray[np.uint8],
        latency_us: NDArray[np.float32],
        forced: NDArray[np.uint8] | None = None,
        budgets: NDArray[np.float32] | None = None,
        leans: NDArray[np.float32] | None = None,
        confidences: NDArray[np.float32] | None = None,
        second_budgets: NDArray[np.float32] | None = None,
        second_leans: NDArray[np.float32] | None = None,
        first: NDArray[np.uint8] | None = None,
        again: NDArray[np.uint8] | None = None,
        gate_us: NDArray[np.float32] | None = None,
    ) -> None:
        """Classifies images (B, H, W, C) into logits (B, N), decisions (B, L), latency_us (B,)."""
