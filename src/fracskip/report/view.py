"""What the page says: records arranged, compared and put into sentences; no markup here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from fracskip.options import Option
from fracskip.report.reading import RecordFile
from fracskip.report.records import EvaluationRecord, RunRecord, StaticPoint, SweepRecord
from fracskip.report.wording import (
    accuracy,
    cost,
    counted,
    duration,
    listed,
    network_words,
    option_words,
    percent,
)
from fracskip.text import visible

STEADY_SHARE = 0.95
Part = Literal["blocks", "classes", "static", "examples"]
_PARTS: tuple[Part, ...] = ("blocks", "classes", "static", "examples")
_MEASURED = {"images", "accuracy", "cp", "bitops_ratio", "escalation_rate", "option_share", "data"}


@dataclass(frozen=True)
class Column:
    """One network of the headline table: the one measured, or one option everywhere."""

    title: str
    accuracy: float
    cp: float
    bitops_ratio: float
    option_share: Mapping[str, float]
    entropy_bits: float | None
    is_measured: bool


@dataclass(frozen=True)
class Measured:
    """One evaluation and the records that hold it.

    Attributes:
        label: Its checkpoint's name, made unique in the page.
        record: The fullest of the records.
        sources: Number and evaluation of each record that holds it.
    """

    label: str
    record: EvaluationRecord
    sources: tuple[tuple[int, EvaluationRecord], ...]

    @property
    def references(self) -> tuple[int, ...]:
        """Numbers of all records that hold it."""
        return tuple(number for number, _ in self.sources)

    def references_of(self, part: Part) -> tuple[int, ...]:
        """Numbers of the records that hold this part of it."""
        return tuple(number for number, record in self.sources if _has(record, part))

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        record = self.record
        block_cost = percent(record.cp) if record.cp >= 0.01 else cost(record.cp)
        return (
            f"{percent(record.accuracy)} of {record.images:,} {record.data.name} "
            f"{record.data.split} images right at {block_cost} of the full network's "
            "block computation."
        )

    @property
    def comparison(self) -> str:
        """What everything executed costs, and the static network that one would take instead."""
        record = self.record
        text = (
            "Everything executed, gates included, comes to "
            f"{cost(record.bitops_ratio)} of the 32-bit network's BitOps."
        )
        if record.escalation_rate:
            text += f" {percent(record.escalation_rate)} of the images were escalated."
        equals = [point for point in record.static if point.accuracy >= record.accuracy]
        if equals:
            rival = min(equals, key=lambda point: point.cp)
            text += " The cheapest static network that is at least as accurate runs "
        elif record.static:
            rival = max(record.static, key=lambda point: point.accuracy)
            text += " No static network on record is as accurate; the best runs "
        else:
            return text
        mode = f"at {option_words(rival.option)}" if rival.option != "full" else "in full"
        return (
            f"{text}{mode} everywhere: {accuracy(rival.accuracy, record.images)} right at "
            f"{cost(rival.cp)} of the block computation, {cost(rival.bitops_ratio)} of the BitOps."
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The measured network and its static points, by cost."""
        record = self.record
        own = Column(
            network_words(record.checkpoint.options),
            record.accuracy,
            record.cp,
            record.bitops_ratio,
            record.option_share,
            record.decision_entropy_bits,
            is_measured=True,
        )
        return (own, *map(_static_column, sorted(record.static, key=lambda s: s.cp)))

    @property
    def has_two_allocations(self) -> bool:
        """Whether any of the examples was escalated."""
        examples = self.record.examples
        return any(item.first_allocation for item in (*examples.cheapest, *examples.dearest))

    @property
    def steadiness(self) -> str:
        """How many blocks decide nearly alike for all images."""
        blocks = self.record.blocks
        steady = sum(max(block.option_share.values()) >= STEADY_SHARE for block in blocks)
        noun = "block" if len(blocks) == 1 else "blocks"
        return (
            f"In {steady} of {len(blocks)} gated {noun} one option serves at least "
            f"{percent(STEADY_SHARE, 0)} of the {counted(self.record.escalation_rate)}."
        )


def _static_column(point: StaticPoint) -> Column:
    return Column(
        network_words((point.option,)),
        point.accuracy,
        point.cp,
        point.bitops_ratio,
        {point.option: 1.0},
        0.0,
        is_measured=False,
    )


def _has(record: EvaluationRecord, part: Part) -> bool:
    if part == "examples":
        return bool(record.examples.cheapest or record.examples.dearest)
    return bool(getattr(record, part))


@dataclass(frozen=True)
class Trained:
    """One run and the numbers of the records that hold it."""

    run: RunRecord
    references: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """How far the run came, in one sentence."""
        run, count = self.run, len(self.run.epochs)
        epochs = f"{count} epoch" if count == 1 else f"{count} epochs"
        where = f" on {run.device}" if run.device else ""
        if run.seconds is not None:
            return f"Run {run.name} finished: {epochs} in {duration(run.seconds)}{where}."
        text = f"Run {run.name} is unfinished: {epochs} on record{where}"
        if not run.epochs:
            return f"{text}."
        last = run.epochs[-1]
        text += f", the last in stage {last.stage}"
        if last.validation is not None:
            text += f" with {percent(last.validation.accuracy)} of the validation images right"
        return f"{text}."

    @property
    def stages(self) -> str:
        """Which epochs belong to which stage."""
        parts, begin = [], 1
        for stage, group in groupby(self.run.epochs, key=lambda epoch: epoch.stage):
            end = begin + len(list(group)) - 1
            parts.append(f"{stage} {begin}" + (f" to {end}" if end > begin else ""))
            begin = end + 1
        return listed(parts)

    @property
    def has_validation(self) -> bool:
        """Whether any epoch was validated."""
        return any(epoch.validation is not None for epoch in self.run.epochs)


def measured(sources: Sequence[RecordFile]) -> list[Measured]:
    """All evaluations in the records; one that several records hold appears once.

    An evaluation given by itself and again at the end of its run is the same if the checkpoint's
    digest and all numbers agree.
    """
    groups: list[list[tuple[int, EvaluationRecord]]] = []
    for number, source in enumerate(sources, 1):
        held = source.record
        record = held.test if isinstance(held, RunRecord) else held
        if not isinstance(record, EvaluationRecord):
            continue
        for group in groups:
            if all(_is_same(record, other) for _, other in group):
                group.append((number, record))
                break
        else:
            groups.append([(number, record)])

    names = [group[0][1].checkpoint.name for group in groups]
    result = []
    for name, group in zip(names, groups, strict=True):
        fullest = max(group, key=lambda item: sum(_has(item[1], part) for part in _PARTS))[1]
        label = name if names.count(name) == 1 else f"{name} [{group[0][0]}]"
        result.append(Measured(label, fullest, tuple(group)))
    return result


def _is_same(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    def differs(part: Part) -> bool:
        both = _has(one, part) and _has(other, part)
        return both and getattr(one, part) != getattr(other, part)

    return (
        bool(one.digest)
        and one.digest == other.digest
        and one.model_dump(include=_MEASURED) == other.model_dump(include=_MEASURED)
        and not any(differs(part) for part in _PARTS)
    )


@dataclass(frozen=True)
class Swept:
    """One sweep over budgets and the number of the record that holds it."""

    label: str
    record: SweepRecord
    references: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """The curve's ends in one sentence."""
        low, high = self.record.points[0], self.record.points[-1]
        data, images = self.record.data, self.record.images
        return (
            f"One network at {len(self.record.points)} budgets: from "
            f"{accuracy(low.accuracy, images)} of {images:,} {data.name} {data.split} images right "
            f"at {cost(low.cp)} of the block computation to {accuracy(high.accuracy, images)} at "
            f"{cost(high.cp)}."
        )

    @property
    def has_escalation(self) -> bool:
        """Whether images were escalated at any budget."""
        return any(point.escalation_rate for point in self.record.points)

    @property
    def middle(self) -> int:
        """The point that is shown first, counted from 0."""
        return len(self.record.points) // 2


def swept(sources: Sequence[RecordFile]) -> list[Swept]:
    """All sweeps in the records."""
    found = [
        (number, source.record)
        for number, source in enumerate(sources, 1)
        if isinstance(source.record, SweepRecord)
    ]
    names = [record.checkpoint.name for _, record in found]
    return [
        Swept(name if names.count(name) == 1 else f"{name} [{number}]", record, (number,))
        for (number, record), name in zip(found, names, strict=True)
    ]


def trained(sources: Sequence[RecordFile]) -> list[Trained]:
    """All runs in the records; one that its log and its summary both hold appears once."""
    groups: list[tuple[RunRecord, list[int]]] = []
    for number, source in enumerate(sources, 1):
        if not isinstance(source.record, RunRecord):
            continue
        known = next((numbers for run, numbers in groups if run == source.record), None)
        if known is None:
            groups.append((source.record, [number]))
        else:
            known.append(number)
    return [Trained(run, tuple(numbers)) for run, numbers in groups]


def by_data(evaluations: Sequence[Measured]) -> list[tuple[str, list[Measured]]]:
    """Evaluations that may share a plot, because they saw the same images."""
    groups: dict[str, list[Measured]] = {}
    for item in evaluations:
        data = item.record.data
        groups.setdefault(f"{data.name} {data.split}", []).append(item)
    return list(groups.items())


def option_labels(items: Sequence[Measured | Swept]) -> list[str]:
    """Every option that the page speaks of, ascending."""
    labels = {label for item in items for label in item.record.option_labels}
    return sorted(labels, key=Option.parse)


def class_accuracy(share: float, images: int) -> str:
    """A class's accuracy; a class without images has none."""
    return accuracy(share, images) if images else "n/a"


def recipe_lines(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A recipe as dotted keys and values.

    >>> list(recipe_lines({"seed": 0, "joint": {"target": 0.05}}))
    [('seed', '0'), ('joint.target', '0.05')]
    """
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            yield from recipe_lines(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield visible(f"{prefix}{key}"), visible(text)
