"""Who follows a run, and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from fracskip.training.stages import StepIndex
from fracskip.training.state import Totals


class RunInterrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the run; its state is saved and `resume` goes on from there."""


class TrainingWatcher(Protocol):
    """Who follows a run: a progress bar, a test."""

    def loading(self, done: int, total: int) -> None:
        """So many of the images are decoded."""
        ...

    def note(self, text: str) -> None:
        """Something about data or network that should be known before time is spent."""
        ...

    def stage(self, name: str, epochs: int, steps: int) -> None:
        """A stage begins, or goes on."""
        ...

    def step(self, at: StepIndex, totals: Totals, lr: float) -> None:
        """A step is done; `totals` are the epoch's so far."""
        ...

    def epoch(self, event: dict[str, Any]) -> None:
        """An epoch is done; the event is what the record holds."""
        ...


class _Silent:
    def loading(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...
    def step(self, at: StepIndex, totals: Totals, lr: float) -> None: ...
    def epoch(self, event: dict[str, Any]) -> None: ...


SILENT: TrainingWatcher = _Silent()


@contextmanager
def stops_on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `stop`, which ends the step and saves; a second is a KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
