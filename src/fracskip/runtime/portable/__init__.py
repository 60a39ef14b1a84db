"""Executes a bundle with torch, by the arithmetic of docs/bundle.md: integers to the bit.

At every block images are grouped by decision, and each group runs once: what is not chosen is not
computed.

Shapes: B images, C channels, H height, W width, K options, L gated blocks, N classes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fracskip.data.resampling import resize
from fracskip.errors import ConfigError
from fracskip.operating.scores import score_of
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.portable.executor import Executor


class PortableEngine:
    """Runs networks. Immutable once built; calls may come from any number of threads.

    Args:
        bundles: The networks: one, or those of a cascade.
        threads: Of torch, while a batch runs. In a process that was forked from one that had this
            module loaded it is one: torch's other threads are not there, and it would wait for them
            for ever.

    Attributes:
        executors: One a network.
    """

    isa = "torch"

    def __init__(self, bundles: Sequence[Bundle], threads: int) -> None:
        self._threads = threads
        with _settings(self.threads):
            self.executors = tuple(Executor(bundle) for bundle in bundles)
        self.classes = bundles[0].plan.network.classes
        images = [bundle.plan.image for bundle in bundles]
        first = images[0]
        self._takes_floats = all(
            (each.size, each.mean, each.std) == (first.size, first.mean, first.std)
            for each in images
        )

    @property
    def threads(self) -> int:
        """How many threads of torch a batch runs on."""
        return 1 if _is_forked else self._threads

    @property
    def networks(self) -> int:
        """How many networks it has."""
        return len(self.executors)

    def gated_blocks(self, network: int) -> int:
        """How many blocks a network decides for."""
        return self.executors[network].gated

    def options(self, network: int) -> int:
        """How many options a network has."""
        return self.executors[network].options

    def kernels(self) -> list[tuple[int, str, str, list[str]]]:
        """What executes each option: (network, part, option, one name a convolution)."""
        return [
            (index, *kernels)
            for index, executor in enumerate(self.executors)
            for kernels in executor.network.kernels()
        ]

    def steps(self, network: int) -> list[tuple[str, str, str, int, int]]:
        """Raises a ConfigError: the portable engine times no steps."""
        raise ConfigError(
            "the portable engine times no steps: open the session with engine='native'"
        )

    def run(
        self,
        images: NDArray[Any],
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
        """Classifies a batch by a chain of members; the answers are written in place.

        All sequences but `thresholds` have one entry a member.

        Args:
            images: uint8 (B, H, W, C), of the largest network's size, which others get resized; or
                normalised float32, if all networks have the same size, mean and std.
            logits: Of the member that answers (B, N).
            latency_us: (B,); each image's share of the batch's time.
            networks: What the members are: indices of networks, in the chain's order.
            decisions: (B, L) each, written for images that the member saw.
            budgets: Computation shares (B,) each, for gates that take them.
            multipliers: Of cost (B,) each; None is the plan's for all.
            thresholds: (B,) of each member but the last: an image of a lower score is escalated to
                the next.
            temperatures: What logits are divided by before the score.
            score: 'probability', 'margin' or 'entropy'.
            scores: (B,) each, written, NaN for images that the member did not see; or none at all.
            answered: Each image's last member (B,), written.
            forced: Option indices (B, L) to execute instead of asking the gate, of a chain of one.
            gate_us: What each gate took in all members (B, L), written, each image's share; of
                chains of one network.
            averaged: Answers are means over the members so far, of logits over temperatures; else
                the last member's logits.
            profile: Empty: there are no `steps` to time.

        Raises:
            ValueError: if images are float32 and networks differ in theirs, or for a profile.
        """
        if profile:
            raise ValueError("the portable engine has no steps to be profiled")
        count = len(images)
        if images.dtype == np.float32 and not self._takes_floats:
            raise ValueError(
                "images must be uint8: this bundle's networks differ in size, mean or std"
            )
        if not count:
            return
        if gate_us is not None:
            gate_us[:] = 0
        for each in scores:
            each[:] = np.nan
        start = time.perf_counter()
        with torch.inference_mode(), _settings(self.threads):
            rows = np.arange(count)
            sizes = {images.shape[1:3]: images}  # of all images in `rows`
            before, x = -1, torch.empty(0)
            for position, network in enumerate(networks):
                executor = self.executors[network]
                if network != before or not executor.gated:
                    if executor.size not in sizes:
                        sizes[executor.size] = resize(sizes[images.shape[1:3]], executor.size)
                    x = executor.begin(sizes[executor.size])
                before = network
                budget, multiplier = (_of(each[position], rows) for each in (budgets, multipliers))
                times = _of(gate_us, rows)
                found = executor.finish(x, forced, budget, multiplier, times)
                said, decisions[position][rows] = found
                if averaged:
                    said = said / np.float32(temperatures[position])
                    if position:
                        said = logits[rows] + (said - logits[rows]) / np.float32(position + 1)
                logits[rows] = said
                answered[rows] = position
                if gate_us is not None:
                    gate_us[rows] = times
                last = position + 1 == len(networks)
                if last and not scores:
                    break
                scaled = said if averaged else said / np.float32(temperatures[position])
                sure = score_of(scaled, score)
                if scores:
                    scores[position][rows] = sure
                if last or not (goes_on := sure < thresholds[position][rows]).any():
                    break
                rows, x = rows[goes_on], x[torch.from_numpy(np.flatnonzero(goes_on))]
                sizes = {size: held[goes_on] for size, held in sizes.items()}
        latency_us[:] = (time.perf_counter() - start) * 1e6 / count


def _of(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> Any:
    """What belongs to some of the images."""
    return None if values is None else values[rows]


_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """So many threads, and no Winograd: its transforms do not keep integers exact."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(before)
