"""What the page says of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from fracskip.report.cascade_records import CascadePoint, CascadeRecord
from fracskip.report.reading import RecordFile
from fracskip.report.wording import accuracy, microseconds


@dataclass(frozen=True)
class Cascaded:
    """One record of a cascade.

    Attributes:
        label: The cascade's name, made unique in the page.
        record: The record.
        references: Its number in the page.
    """

    label: str
    record: CascadeRecord
    references: tuple[int, ...]

    @property
    def points(self) -> tuple[CascadePoint, ...]:
        """The operating points by their mean latency."""
        return tuple(sorted(self.record.points, key=attrgetter("latency_us.mean")))

    @property
    def best(self) -> CascadePoint:
        """The most accurate operating point, of equals the fastest."""
        return max(self.points, key=attrgetter("accuracy"))

    @property
    def sentence(self) -> str:
        """The most accurate operating point beside the last member, in one sentence."""
        record, images, best = self.record, self.record.images, self.best
        text = (
            f"{accuracy(best.accuracy, images)} of {images:,} {record.data.name} "
            f"{record.data.split} images right in {microseconds(best.latency_us.mean)} an image"
        )
        if best.chain == (len(record.members) - 1,):
            return f"{text} by the last member alone, the most accurate operating point on record."
        last = record.members[-1]
        return (
            f"{text}; its last member alone: {accuracy(last.accuracy, images)} in "
            f"{microseconds(last.latency_us.mean)}."
        )


def cascaded(sources: Sequence[RecordFile]) -> list[Cascaded]:
    """All cascades in the records."""
    found = [
        (number, source.record)
        for number, source in enumerate(sources, 1)
        if isinstance(source.record, CascadeRecord)
    ]
    names = [record.checkpoint.name for _, record in found]
    return [
        Cascaded(name if names.count(name) == 1 else f"{name} [{number}]", record, (number,))
        for (number, record), name in zip(found, names, strict=True)
    ]
