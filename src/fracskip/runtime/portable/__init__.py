"""Executes a bundle with torch, by the arithmetic of docs/bundle.md: integers to the bit.

At every block images are grouped by decision, and each group runs once: what is not chosen is not
computed.

Shapes: B images, C channels, H height, W width, K options, L gated blocks, N classes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.runtime.bundle import Bundle
from fracskip.runtime.portable.gate import Gate
from fracskip.runtime.portable.network import PortableNetwork
from fracskip.runtime.portable.tensors import Tensors


class PortableEngine:
    """Runs a bundle. Immutable once built; calls may come from any number of threads.

    Args:
        bundle: What to run.
        threads: Of torch, while a batch runs. In a process that was forked from one that had this
            module loaded it is one: torch's other threads are not there, and it would wait for them
            for ever.
    """

    isa = "torch"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._threads = threads
        with _settings(self.threads):
            self._build(bundle)

    def _build(self, bundle: Bundle) -> None:
        plan = bundle.plan
        self._gated = len(plan.gated_names)
        tensors = Tensors(bundle)
        self._network = PortableNetwork(plan, tensors)
        self._gate = None if plan.gate is None else Gate(bundle, tensors)
        # The reciprocals are rounded before they are used.
        self._mean = torch.tensor(plan.image.mean, dtype=torch.float32)
        self._inverse_std = 1 / torch.tensor(plan.image.std, dtype=torch.float32)

    @property
    def threads(self) -> int:
        """How many threads of torch a batch runs on."""
        return 1 if _is_forked else self._threads

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """What executes each block's options: (block, option, one name a convolution)."""
        return self._network.kernels()

    def run(
        self,
        images: NDArray[Any],
        logits: NDArray[np.float32],
        decisions: NDArray[np.uint8],
        latency_us: NDArray[np.float32],
        forced: NDArray[np.uint8] | None = None,
        budgets: NDArray[np.float32] | None = None,
        multipliers: NDArray[np.float32] | None = None,
        thresholds: NDArray[np.float32] | None = None,
        second_budgets: NDArray[np.float32] | None = None,
        second_multipliers: NDArray[np.float32] | None = None,
        second_decisions: NDArray[np.uint8] | None = None,
        escalated: NDArray[np.uint8] | None = None,
        gate_us: NDArray[np.float32] | None = None,
    ) -> None:
        """Classifies a batch; the answers are written in place.

        Args:
            images: uint8 or normalised float32 (B, H, W, C).
            logits: (B, N).
            decisions: Of the first member, (B, L).
            latency_us: (B,); each image's share of the batch's time.
            forced: Option indices (B, L) to execute instead of asking the gate.
            budgets: Computation shares (B,), for gates that take them.
            multipliers: Of cost (B,); the plan's for all if not given.
            thresholds: An image whose first choice is less probable is escalated to the second
                member (B,); without them there is one.
            second_budgets: As `budgets`, of the second member.
            second_multipliers: As `multipliers`, likewise.
            second_decisions: Of the second member (B, L), written where an image is escalated; with
                `thresholds`.
            escalated: Which images were (B,), written; likewise.
            gate_us: What each gate took in all members (B, L), written; each image's share.
        """
        if not len(images):
            return
        if gate_us is not None:
            gate_us[:] = 0
        begin = time.perf_counter()
        with torch.inference_mode(), _settings(self.threads):
            x = self._network.begin(
                self._normalised(torch.tensor(images))
            )  # theirs may be read-only
            logits[:], decisions[:] = self._member(x, forced, budgets, multipliers, gate_us)
            if thresholds is not None and self._gated:
                assert second_decisions is not None
                assert escalated is not None
                powers = np.exp(logits - logits.max(1, keepdims=True))
                escalated[:] = 1 / powers.sum(1) < thresholds
                rows = np.flatnonzero(escalated)
                if len(rows):
                    asked, weighed, times = (
                        None if each is None else each[rows]
                        for each in (second_budgets, second_multipliers, gate_us)
                    )
                    found = self._member(x[torch.from_numpy(rows)], None, asked, weighed, times)
                    logits[rows], second_decisions[rows] = found
                    if gate_us is not None:
                        gate_us[rows] = times
        latency_us[:] = (time.perf_counter() - begin) * 1e6 / len(images)

    def _member(
        self,
        x: Tensor,
        forced: NDArray[np.uint8] | None,
        budgets: NDArray[np.float32] | None,
        multipliers: NDArray[np.float32] | None,
        gate_us: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """From what the first gated block sees: logits (B, N) and decisions (B, L)."""
        decide = None
        if forced is None and self._gate is not None:
            decide = self._gate.start(
                *(None if each is None else torch.tensor(each) for each in (budgets, multipliers))
            )
        choices: list[NDArray[np.int64]] = []
        for gated in range(self._gated):
            if decide is not None:
                begin = time.perf_counter()
                choice = decide(gated, self._network.pool(gated, x))
                if gate_us is not None:
                    gate_us[:, gated] += (time.perf_counter() - begin) * 1e6 / len(x)
            elif forced is not None:
                choice = torch.from_numpy(forced[:, gated].astype(np.int64))
            else:
                choice = torch.zeros(len(x), dtype=torch.int64)
            choices.append(choice.numpy())
            x = self._network.execute(gated, x, choice)
        decisions = np.stack(choices, 1) if choices else np.empty((len(x), 0), np.int64)
        return self._network.head(x).numpy(), decisions

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) to what a network takes, (B, C, H, W)."""
        if pixels.dtype == torch.uint8:
            scale = torch.tensor(1 / 255, dtype=torch.float32)
            pixels = (pixels.to(torch.float32) * scale - self._mean) * self._inverse_std
        return pixels.permute(0, 3, 1, 2)


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
