"""The record of a cascade on a data set, schema `fracskip.cascade/1`, typed and checked."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fracskip.operating.cascade import MAX_CHAIN, MAX_MEMBERS
from fracskip.operating.scores import Score
from fracskip.report.records import DataSplit
from fracskip.report.values import (
    ROUNDING,
    Count,
    Digest,
    Name,
    NonNegative,
    OptionLabels,
    Positive,
    RecordPart,
    Share,
)
from fracskip.report.wording import cost as cost_words

CASCADE_SCHEMA = "fracskip.cascade/1"
_COST_TOLERANCE = 1e-3  # of a cost that was rounded


def _ascend(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("an interval ends where it begins, or above")
    return interval


Pixels = Annotated[int, Field(strict=True, ge=1)]
Interval = Annotated[tuple[Share, Share], AfterValidator(_ascend)]


class CascadeCheckpoint(RecordPart):
    """Which cascade was measured.

    Attributes:
        name: The name it was loaded by.
        digest: Of its bundle, or '' where the record has none.
        model: Its members' networks.
    """

    name: Name
    digest: Digest = ""
    model: Name


class Latency(RecordPart):
    """Time of an image in microseconds: mean, median and 99th percentile."""

    mean: Positive
    p50: NonNegative
    p99: NonNegative

    @model_validator(mode="after")
    def _quantiles_ascend(self) -> Latency:
        if self.p50 > self.p99:
            raise ValueError(f"p50 may be at most p99, {self.p99:.4g}; it is {self.p50:.4g}")
        return self


class Result(RecordPart):
    """What was measured, of a member or at an operating point.

    Attributes:
        accuracy: Share of images classified correctly.
        accuracy_95: Its interval at 95%.
        latency_us: Of an image.
    """

    accuracy: Share
    accuracy_95: Interval
    latency_us: Latency

    @model_validator(mode="after")
    def _accuracy_is_in_its_interval(self) -> Result:
        low, high = self.accuracy_95
        if not low - ROUNDING <= self.accuracy <= high + ROUNDING:
            raise ValueError(
                f"accuracy must lie in accuracy_95, {low:.4g} to {high:.4g}; it is "
                f"{self.accuracy:.4g}"
            )
        return self


class CascadeMember(Result):
    """A member by itself.

    Attributes:
        name: Of its network.
        image: Height and width of its images in pixels.
        options: Labels of its network's options.
        budget: That the network is asked for; None: what it has without one.
        cost: Mean BitOps of an image, over the last member's.
    """

    name: Name
    image: tuple[Pixels, Pixels]
    options: OptionLabels
    budget: Annotated[Share, Field(gt=0)] | None = None
    cost: Positive

    @property
    def setting(self) -> str:
        """Its pixels, and its budget if it has one, in words."""
        pixels = f"{self.image[0]}x{self.image[1]}"
        return pixels if self.budget is None else f"{pixels}, budget {cost_words(self.budget)}"

    @property
    def words(self) -> str:
        """What it is, in words."""
        return f"{self.name} {self.setting}"


class CascadePoint(Result):
    """An operating point, executed.

    Attributes:
        budget: That was asked for; None: none, which is the most accurate.
        chain: Numbers of its members, in order.
        thresholds: An image whose score is less is escalated.
        rates: Share of images that reached each member of the chain; the first is 1.
        cost: Mean BitOps of an image, over the last member's.
        bitops_ratio: Everything executed, over the last member's network at 32 bits.
        random_escalation: Accuracy where as many images are escalated, drawn at random.
        permuted_escalation: Accuracy where each image is escalated by the score of another.
    """

    budget: Annotated[Share, Field(gt=0)] | None = None
    chain: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_CHAIN)]
    thresholds: tuple[NonNegative, ...]
    rates: tuple[Share, ...]
    cost: Positive
    bitops_ratio: NonNegative
    random_escalation: Share | None = None
    permuted_escalation: Share | None = None

    @model_validator(mode="after")
    def _it_is_a_chain(self) -> CascadePoint:
        if any(before >= after for before, after in itertools.pairwise(self.chain)):
            raise ValueError("a chain's members must ascend")
        if len(self.rates) != len(self.chain) or len(self.thresholds) + 1 != len(self.chain):
            raise ValueError("a chain needs a rate for each member and a threshold between two")
        if self.rates[0] != 1 or any(b > a for a, b in itertools.pairwise(self.rates)):
            raise ValueError("a chain's rates must begin with 1 and may not rise")
        if (self.random_escalation is None) == (len(self.chain) > 1):
            raise ValueError("random_escalation is for chains of several members, and needed there")
        return self


class CascadeRecord(RecordPart):
    """What a cascade does on a data set, at some operating points; see `evaluate_cascade`.

    Attributes:
        images: Number of images.
        score: Which score decides what is escalated.
        members: Each by itself; costs are in units of the last one's.
        points: In the order of the record.
        seconds: Time it took.
    """

    schema_: Literal["fracskip.cascade/1"] = Field(alias="schema")
    checkpoint: CascadeCheckpoint
    checkpoint_digest: Digest = ""
    data: DataSplit
    images: Annotated[int, Field(strict=True, ge=1)]
    score: Score
    members: Annotated[tuple[CascadeMember, ...], Field(min_length=2, max_length=MAX_MEMBERS)]
    points: Annotated[tuple[CascadePoint, ...], Field(min_length=1)]
    seconds: NonNegative
    device: Name
    versions: dict[Name, Name]

    @property
    def digest(self) -> str:
        """The cascade's digest, or '' where the record has none."""
        return self.checkpoint_digest or self.checkpoint.digest

    @model_validator(mode="after")
    def _digests_agree(self) -> CascadeRecord:
        if len({self.checkpoint_digest, self.checkpoint.digest} - {""}) > 1:
            raise ValueError("checkpoint_digest and checkpoint.digest must be the same")
        return self

    @model_validator(mode="after")
    def _costs_are_those_of_the_members(self) -> CascadeRecord:
        if abs(self.members[-1].cost - 1) > _COST_TOLERANCE:
            raise ValueError(
                f"the last member's cost must be 1, the unit; it is {self.members[-1].cost:.4g}"
            )
        for place, point in enumerate(self.points):
            if point.chain[-1] >= len(self.members):
                raise ValueError(
                    f"points.{place} names member {point.chain[-1]}; there are "
                    f"{len(self.members)}, counted from 0"
                )
            cost = sum(
                rate * self.members[member].cost
                for rate, member in zip(point.rates, point.chain, strict=True)
            )
            if abs(point.cost - cost) > _COST_TOLERANCE:
                raise ValueError(
                    f"the cost of points.{place} must be {cost:.4g}, its rates times its members' "
                    f"costs; it is {point.cost:.4g}"
                )
        return self
