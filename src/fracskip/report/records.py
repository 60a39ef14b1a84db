"""Records as typed, frozen values: what an evaluation measured, what a run went through.

Three schemas are read here: `fracskip.evaluation/2` and `fracskip.sweep/2` (JSON files), and
`fracskip.run/2` (a JSON file, or the event log `record.jsonl` that training appends to);
`cascade_records` has another. Keys that a schema does not know are ignored, so that a later
fracskip may write more; whatever is known is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fracskip.config import ImageConfig
from fracskip.options import Option
from fracskip.report.values import (
    ROUNDING,
    Cost,
    Count,
    Decisions,
    Digest,
    Finite,
    Name,
    NonNegative,
    OptionLabel,
    OptionLabels,
    Png,
    RecordPart,
    Share,
    Shares,
)

EVALUATION_SCHEMA = "fracskip.evaluation/2"
RUN_SCHEMA = "fracskip.run/2"
SWEEP_SCHEMA = "fracskip.sweep/2"


def _check_options(used: Iterable[Iterable[str]], checkpoint: Checkpoint) -> None:
    """Refuses labels of options that the checkpoint does not have."""
    foreign = {label for labels in used for label in labels} - set(checkpoint.options)
    if foreign:
        raise ValueError(
            f"option {min(foreign)!r} is not among the checkpoint's options; it has "
            f"{', '.join(checkpoint.options)}"
        )


def _check_cost(cp: float, escalation_rate: float) -> None:
    """Refuses more computation than images can execute of which so many are escalated."""
    if cp > 1 + escalation_rate + ROUNDING:
        raise ValueError(
            f"cp may be at most {1 + escalation_rate:.4g}, with an escalation rate of "
            f"{escalation_rate:.4g}; it is {cp:.4g}"
        )


class Checkpoint(RecordPart):
    """Which network was measured.

    Attributes:
        name: The name it was loaded by.
        digest: Digest of its weights, or '' where the record has none.
        model: The backbone.
        options: Labels of its options, ascending.
        quant: Quantisation scheme.
        gate: Kind of gate.
        target: The computation share it was trained for.
        macs: Multiply-accumulates of the plain network for one image; 0 where the record has none.
    """

    name: Name
    digest: Digest = ""
    model: Name
    options: OptionLabels
    quant: Name | None = None
    gate: Name | None = None
    target: Share | None = None
    macs: Count = 0


class DataSplit(RecordPart):
    """Which images it was measured on.

    Attributes:
        name: The set's display name.
        split: Which part of it.
        digest: SHA-256 of the images as the network took them, in hexadecimal; '' where the record
            names none of them.
        image: Their size and channels, likewise.
    """

    name: Name
    split: Name
    digest: Digest = ""
    image: ImageConfig | None = None


class Block(RecordPart):
    """The decisions of one gated block over all images.

    Attributes:
        name: The block's name in the network.
        option_share: Share of images for each option; of executions, where some were escalated.
        entropy_bits: Entropy of these shares, in bits.
        macs: Multiply-accumulates of the block for one image.
    """

    name: Name
    option_share: Shares
    entropy_bits: NonNegative | None = None
    macs: Count | None = None


class ClassResult(RecordPart):
    """One class of images: how many, how well, at what cost."""

    name: Name
    images: Count
    accuracy: Share
    cp: Cost
    option_share: Shares | None = None


class StaticPoint(RecordPart):
    """The same network with one option in every block.

    Attributes:
        option: Label of the option.
        accuracy: Share of images classified correctly.
        cp: Computation percentage as a share.
        bitops_ratio: Everything executed, over the same network at 32 bits.
    """

    option: OptionLabel
    accuracy: Share
    cp: Share
    bitops_ratio: NonNegative


class Example(RecordPart):
    """One image and its allocation.

    Attributes:
        index: Its position in the split.
        label: Its true class.
        predicted: The class the network gave.
        cp: Its computation percentage as a share, of all members that saw it.
        allocation: The option of each gated block, in the member that answered.
        first_allocation: The same of the first member; None if the image was not escalated.
        png: The image, a PNG in base64; None in records but those of older versions.
    """

    index: Count
    label: Name
    predicted: Name
    cp: Cost
    allocation: Decisions
    first_allocation: Decisions | None = None
    png: Png | None = None

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.label == self.predicted

    @property
    def allocations(self) -> tuple[tuple[str, ...], ...]:
        """One a member; the last answered."""
        first = () if self.first_allocation is None else (self.first_allocation,)
        return (*first, self.allocation)

    @model_validator(mode="after")
    def _cost_fits_the_members(self) -> Example:
        _check_cost(self.cp, float(self.first_allocation is not None))
        return self


class Examples(RecordPart):
    """The images that cost least and most."""

    cheapest: tuple[Example, ...] = ()
    dearest: tuple[Example, ...] = ()

    @property
    def allocations(self) -> list[tuple[str, ...]]:
        """Of all of them, in all members."""
        return [one for item in (*self.cheapest, *self.dearest) for one in item.allocations]


class EvaluationRecord(RecordPart):
    """What one evaluation of one checkpoint measured.

    Attributes:
        images: Number of images.
        accuracy: Share of them classified correctly.
        cp: Computation percentage as a share: mean of (bits / 32)² over images and gated blocks.
        bitops_ratio: Everything executed, gates included, over the same network at 32 bits.
        escalation_rate: Share of images that were escalated; costs and decisions are those of
            all members.
        option_share: Share of decisions for each option.
        decision_entropy_bits: Mean over blocks of the entropy of their decisions, in bits.
        seconds: Time the evaluation took.
        blocks: Per gated block, in order of execution.
        classes: Per class.
        static: The network with one option everywhere.
        examples: The images that cost least and most.
    """

    schema_: Literal["fracskip.evaluation/2"] = Field(alias="schema")
    checkpoint: Checkpoint
    data: DataSplit
    images: Annotated[int, Field(strict=True, ge=1)]
    accuracy: Share
    cp: Cost
    bitops_ratio: NonNegative
    escalation_rate: Share = 0.0
    option_share: Shares
    decision_entropy_bits: NonNegative | None = None
    seconds: NonNegative
    device: Name
    checkpoint_digest: Digest = ""
    versions: dict[Name, Name]
    blocks: tuple[Block, ...] = ()
    classes: tuple[ClassResult, ...] = ()
    static: tuple[StaticPoint, ...] = ()
    examples: Examples = Examples()

    @property
    def digest(self) -> str:
        """The checkpoint's digest, or '' where the record has none."""
        return self.checkpoint_digest or self.checkpoint.digest

    @property
    def option_labels(self) -> tuple[str, ...]:
        """Every option that the record speaks of, ascending."""
        labels = {*self.checkpoint.options, *(point.option for point in self.static)}
        return tuple(sorted(labels, key=Option.parse))

    @model_validator(mode="after")
    def _digests_agree(self) -> EvaluationRecord:
        digests = {self.checkpoint_digest, self.checkpoint.digest} - {""}
        if len(digests) > 1:
            raise ValueError("checkpoint_digest and checkpoint.digest must be the same")
        return self

    @model_validator(mode="after")
    def _options_are_the_checkpoints(self) -> EvaluationRecord:
        shares = [self.option_share, *(block.option_share for block in self.blocks)]
        shares += [item.option_share for item in self.classes if item.option_share is not None]
        _check_options([*shares, *self.examples.allocations], self.checkpoint)
        return self

    @model_validator(mode="after")
    def _allocations_fit_the_blocks(self) -> EvaluationRecord:
        lengths = {len(one) for one in self.examples.allocations}
        wanted = len(self.blocks) or max(lengths, default=0)
        if lengths - {wanted}:
            raise ValueError(
                f"every allocation needs one option per gated block, {wanted} here; "
                f"one has {min(lengths - {wanted})}"
            )
        return self

    @model_validator(mode="after")
    def _costs_fit_the_members(self) -> EvaluationRecord:
        _check_cost(self.cp, self.escalation_rate)
        for item in self.classes:
            # All that were escalated may be images of one class.
            _check_cost(item.cp, float(self.escalation_rate > 0))
        return self


class SweepPoint(RecordPart):
    """The network at one budget.

    Attributes:
        budget: The computation share that was asked for.
        accuracy: Share of images classified correctly.
        cp: The computation percentage that it came to, as a share.
        bitops_ratio: Everything executed, gates included, over the same network at 32 bits.
        escalation_rate: Share of images that were escalated.
        option_share: Share of decisions for each option.
        decision_entropy_bits: Mean over blocks of the entropy of their decisions, in bits.
        seconds: Time it took.
        blocks: Per gated block, in order of execution.
    """

    budget: Share
    accuracy: Share
    cp: Cost
    bitops_ratio: NonNegative
    escalation_rate: Share = 0.0
    option_share: Shares
    decision_entropy_bits: NonNegative | None = None
    seconds: NonNegative = 0.0
    blocks: tuple[Block, ...] = ()

    @model_validator(mode="after")
    def _cost_fits_the_members(self) -> SweepPoint:
        _check_cost(self.cp, self.escalation_rate)
        return self


class SweepRecord(RecordPart):
    """What one checkpoint does at several budgets.

    Attributes:
        images: Number of images.
        points: By budget, ascending.
    """

    schema_: Literal["fracskip.sweep/2"] = Field(alias="schema")
    checkpoint: Checkpoint
    data: DataSplit
    images: Annotated[int, Field(strict=True, ge=1)]
    points: Annotated[tuple[SweepPoint, ...], Field(min_length=1)]
    device: Name
    checkpoint_digest: Digest = ""
    versions: dict[Name, Name]

    @property
    def digest(self) -> str:
        """The checkpoint's digest, or '' where the record has none."""
        return self.checkpoint_digest or self.checkpoint.digest

    @property
    def seconds(self) -> float:
        """Time it took."""
        return math.fsum(point.seconds for point in self.points)

    @property
    def option_labels(self) -> tuple[str, ...]:
        """The checkpoint's options, ascending."""
        return self.checkpoint.options

    @model_validator(mode="after")
    def _points_fit(self) -> SweepRecord:
        budgets = [point.budget for point in self.points]
        if sorted(set(budgets)) != budgets:
            raise ValueError("points must ascend by budget")
        shares = [point.option_share for point in self.points]
        shares += [block.option_share for point in self.points for block in point.blocks]
        _check_options(shares, self.checkpoint)
        return self


class Validation(RecordPart):
    """The state of a run on its validation images."""

    accuracy: Share
    cp: Share | None = None
    loss: Finite | None = None


class Epoch(RecordPart):
    """One epoch of a run.

    Attributes:
        stage: Which of the stages it belongs to.
        epoch: Its number.
        step: Optimiser steps so far.
        loss: Mean training loss.
        accuracy: On the training images; None in the gates' stage.
        agreement: In the gates' stage: share of decisions that are those it trains towards.
        cp: On the training images; None where nothing is decided yet.
        lr: Learning rate at its end.
        seconds: Time it took.
        validation: On the validation images.
    """

    stage: Literal["backbone", "supernet", "gates", "joint"]
    epoch: Count
    step: Count | None = None
    loss: Finite
    accuracy: Share | None = None
    agreement: Share | None = None
    cp: Share | None = None
    lr: NonNegative | None = None
    seconds: NonNegative | None = None
    validation: Validation | None = None


class RunRecord(RecordPart):
    """What a training run went through.

    Attributes:
        name: The run's name.
        recipe: Its recipe, as it was written.
        epochs: In order; an epoch repeated after a resume counts once, the last time.
        test: The evaluation at its end.
        seconds: Time it took; None while it has not ended.
    """

    schema_: Literal["fracskip.run/2"] = Field(alias="schema")
    name: Name
    recipe: dict[str, Any] = Field(default_factory=dict)
    versions: dict[Name, Name] = Field(default_factory=dict)
    device: Name | None = None
    epochs: tuple[Epoch, ...] = ()
    test: EvaluationRecord | None = None
    seconds: NonNegative | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its end."""
        return self.seconds is not None
