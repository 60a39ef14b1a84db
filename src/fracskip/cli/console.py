"""What a person sees: tables and progress bars.

Strings are shown through `text.visible` and without markup: names come from files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fracskip.text import visible

if TYPE_CHECKING:
    from fracskip.cli.doctor import Finding
    from fracskip.training.stages import StepIndex
    from fracskip.training.state import Totals

_SHORT = {"skip": "·", "full": "F"}
MANY = 4  # options whose shares still have a decimal


class _Console(Console):
    def render_str(self, text: str, **keywords: Any) -> Text:
        """Every string that is printed, alone or in a cell, comes through here."""
        return super().render_str(visible(text), **keywords)

    def on_broken_pipe(self) -> None:
        """Leaves it to `main` to say what that means."""
        raise BrokenPipeError


def _out() -> Console:
    return _Console(highlight=False, markup=False, emoji=False)


def _err() -> Console:
    return _Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """One plain line on standard output, which is not wrapped: paths stay whole."""
    _out().print(text, soft_wrap=True)


def explain(text: str) -> None:
    """A paragraph, wrapped to the terminal's width."""
    _out().print(text, markup=False, highlight=False)


def remark(text: str) -> None:
    """One line on stderr, of what may surprise."""
    _err().print(f"note: {text}", markup=False, soft_wrap=True)


def _bar() -> Progress:
    console = _err()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    with _bar() as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def decoding() -> Iterator[Callable[[int, int], None]]:
    """The same for images that are decoded: called with how many are done, and of how many."""
    with _bar() as progress:
        tasks: list[TaskID] = []  # none for a set that is no folder: it says nothing

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(progress.add_task("decoding images", total=total))
            progress.update(tasks[0], completed=done)

        yield show


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage.

    >>> percent(0.0625)
    '6.25%'
    """
    return f"{100 * share:.{digits}f}%"


def duration(seconds: float) -> str:
    """A time as a person says it, roughly.

    >>> [duration(seconds) for seconds in (8.4, 200, 9000)]
    ['about 8 s', 'about 3 min', 'about 2.5 h']
    """
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _table_of(record: dict[str, Any]) -> Table:
    """An empty table that says which network saw which images."""
    checkpoint, data = record["checkpoint"], record["data"]
    return Table(
        title=f"{checkpoint['model']} ({checkpoint['name']}) on {record['images']:,} "
        f"{data['name']} {data['split']} images",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),  # narrow: six options fit 80 columns
    )


def _shares(shares: Iterable[float]) -> list[str]:
    """Percentages, whole ones where there are many."""
    values = list(shares)
    return [percent(share, 1 if len(values) <= MANY else 0) for share in values]


def show_evaluation(record: dict[str, Any]) -> None:
    """The headline table: the network by its own decisions, and forced to each option."""
    table = _table_of(record)
    table.add_column("blocks run")
    for column in ("accuracy", "cp", "BitOps"):
        table.add_column(column, justify="right", no_wrap=True)
    for label in record["option_share"]:
        table.add_column(label, justify="right", no_wrap=True)
    dynamic = record["option_share"]
    table.add_row(
        "by the gates",
        percent(record["accuracy"]),
        percent(record["cp"]),
        percent(record["bitops_ratio"]),
        *_shares(dynamic.values()),
        style="bold",
    )
    for point in reversed(record["static"]):
        label = point["option"]
        name = "all at 32 bits" if label == "full" else f"all at {label} bits"
        table.add_row(
            name,
            percent(point["accuracy"]),
            percent(point["cp"]),
            percent(point["bitops_ratio"]),
            *("100%" if label == other else "" for other in dynamic),
        )
    rate = record.get("escalation_rate", 0.0)  # older records lack it
    escalated = f" {percent(rate, 1)} of images were escalated." if rate else ""
    console = _out()
    console.print(table)
    console.print(
        "cp: mean of (bits/32)² over images and gated blocks. BitOps: all that is executed, gates "
        "included, over the plain network at 32 bits. Shares of blocks by option on the right."
    )
    console.print(
        f"Decision entropy {record['decision_entropy_bits']:.2f} bits a block; "
        f"{record['seconds']:.1f} s on {record['device']}.{escalated}"
    )


def show_sweep(record: dict[str, Any]) -> None:
    """A line for each budget; how many images were escalated, if any were."""
    table = _table_of(record)
    options, points = record["checkpoint"]["options"], record["points"]
    rate = ["escalated"] if any(point.get("escalation_rate") for point in points) else []
    for column in ("budget", "cp", "BitOps", "accuracy", *rate, *options):
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        costs = (percent(point[key]) for key in ("budget", "cp", "bitops_ratio", "accuracy"))
        rates = (percent(point.get("escalation_rate", 0.0), 1) for _ in rate)
        table.add_row(*costs, *rates, *_shares(point["option_share"].values()))
    _out().print(table)


def show_table(table: Table) -> None:
    """A table that was made elsewhere."""
    _out().print(table)


def show_predictions(rows: Sequence[dict[str, Any]]) -> None:
    """One line an image: class, probability, cost, allocation; both where escalated."""
    table = Table()
    for column in ("image", "class"):
        table.add_column(column, overflow="fold")
    for column in ("prob.", "cp"):
        table.add_column(column, justify="right")
    table.add_column("blocks (· skip, bits, F full)", no_wrap=True)
    for row, allocation in zip(rows, _allocations(rows), strict=True):
        probability, cp = percent(row["probability"], 1), percent(row["cp"])
        table.add_row(row["file"], row["class"], probability, cp, allocation)
    console = _out()
    console.print(table)
    if any(row["first_allocation"] for row in rows):
        console.print("a > b: escalated; a is the first member's, b the one that answered.")


def _allocations(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The allocation of each image, or both with a > between them."""
    found = [[row[key] for key in ("first_allocation", "allocation") if row[key]] for row in rows]
    cells = [[[_SHORT.get(label, label) for label in one] for one in several] for several in found]
    # Without gaps two are about as wide as one with them; labels of two characters need them.
    two = any(len(several) > 1 for several in cells)
    wide = any(len(cell) > 1 for several in cells for one in several for cell in one)
    gap = "" if two and not wide else " "
    return [" > ".join(gap.join(one) for one in several) for several in cells]


def show_findings(findings: Sequence[Finding]) -> None:
    """What the doctor found."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(finding.what, finding.found if finding.ok else f"PROBLEM: {finding.found}")
    _out().print(table)


class TrainingProgress:
    """A bar per epoch with loss, accuracy, cp and the time left; a line when an epoch is done."""

    def __init__(self) -> None:
        console = _err()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[means]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._loading: TaskID | None = None
        self._stage, self._epochs, self._steps = "", 0, 0
        self._begin, self._done = 0.0, 0  # of this sitting

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def loading(self, done: int, total: int) -> None:
        """See `TrainingWatcher`."""
        if self._loading is None:
            self._loading = self._progress.add_task("decoding images", total=total, means="")
        self._progress.update(self._loading, completed=done)
        if done == total:
            self._progress.remove_task(self._loading)
            self._loading = None

    def note(self, text: str) -> None:
        """See `TrainingWatcher`."""
        self._progress.console.print(f"note: {text}", soft_wrap=True)

    def stage(self, name: str, epochs: int, steps: int) -> None:
        """See `TrainingWatcher`."""
        self._stage, self._epochs, self._steps = name, epochs, steps
        self._begin, self._done = time.monotonic(), 0
        if self._task is not None:
            self._progress.remove_task(self._task)
        # One bar for the whole stage, so that the time left is the stage's.
        self._task = self._progress.add_task(name, total=epochs * steps, means="")

    def step(self, at: StepIndex, totals: Totals, lr: float) -> None:
        """See `TrainingWatcher`."""
        assert self._task is not None
        measure = "agreement" if self._stage == "gates" else "accuracy"
        means = totals.means(measure)
        parts = [f"loss {means['loss']:.3f}", f"{measure} {percent(means[measure] or 0, 1)}"]
        if means["cp"] is not None:
            parts.append(f"cp {percent(means['cp'])}")
        self._progress.update(
            self._task,
            description=f"{self._stage} {at.epoch + 1}/{self._epochs}",
            completed=at.epoch * self._steps + at.step + 1,
            means="  ".join(parts),
        )

    def epoch(self, event: dict[str, Any]) -> None:
        """See `TrainingWatcher`."""
        validation = event["validation"]
        cp = "" if validation["cp"] is None else f", cp {percent(validation['cp'])}"
        self._done += 1
        each = (time.monotonic() - self._begin) / self._done
        remaining = self._epochs - event["epoch"]
        left = f", {duration(remaining * each)} left" if remaining else ""
        self._progress.console.print(
            f"{event['stage']} {event['epoch']}: loss {event['loss']:.3f}, validation accuracy "
            f"{percent(validation['accuracy'])}{cp}, {event['seconds']:.0f} s{left}",
            soft_wrap=True,
        )
