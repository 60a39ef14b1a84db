"""Records as typed, frozen values: what an evaluation measured, what a run went through.

Three schemas are read: `fracskip.evaluation/1` and `fracskip.sweep/1` (JSON files), and
`fracskip.run/1` (a JSON file, or the event log `record.jsonl` that training appends to). Keys
that a schema does not know are ignored, so that a later fracskip may write more; whatever is known
is checked.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fracskip.options import Option, OptionSet

EVALUATION_SCHEMA = "fracskip.evaluation/1"
RUN_SCHEMA = "fracskip.run/1"
SWEEP_SCHEMA = "fracskip.sweep/1"

SHARE_TOLERANCE = 5e-3
_ROUNDING = 1e-6  # sums of float32 end a little above 1
MAX_PNG_BYTES = 1 << 20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters are allowed")
    return text


def _sorted_options(labels: tuple[str, ...]) -> tuple[str, ...]:
    return OptionSet.of(labels).labels


def _one_option(label: str) -> str:
    return Option.parse(label).label


def _at_most_one(share: float) -> float:
    if share > 1 + _ROUNDING:
        raise ValueError("a share of at most 1 is needed")
    return min(share, 1.0)


def _sums_to_one(shares: dict[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    if abs(total - 1) > SHARE_TOLERANCE:
        raise ValueError(f"shares must sum to 1, these sum to {total:.4g}")
    return dict(sorted(shares.items(), key=lambda item: Option.parse(item[0])))


def png_size(png: str) -> tuple[int, int]:
    """Width and height in pixels of a base64 PNG.

    Raises:
        ValueError: if it is no base64, no PNG, or larger than 1 MiB.
    """
    try:
        data = base64.b64decode(png, validate=True)
    except binascii.Error:
        raise ValueError("a base64 string is needed") from None
    if len(data) > MAX_PNG_BYTES:
        raise ValueError(f"a thumbnail may have {MAX_PNG_BYTES} bytes, this has {len(data)}")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(_PNG_SIGNATURE) or not width or not height:
        raise ValueError("a PNG image in base64 is needed")
    return width, height


def _is_png(png: str) -> str:
    png_size(png)
    return png


Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[NonNegative, AfterValidator(_at_most_one)]
Count = Annotated[int, Field(strict=True, ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Digest = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
OptionLabel = Annotated[str, AfterValidator(_one_option)]
Shares = Annotated[dict[OptionLabel, Share], AfterValidator(_sums_to_one)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Checkpoint(_Record):
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
    options: Annotated[tuple[str, ...], AfterValidator(_sorted_options)]
    quant: Name | None = None
    gate: Name | None = None
    target: Share | None = None
    macs: Count = 0


class DataSplit(_Record):
    """Which images it was measured on."""

    name: Name
    split: Name


class Block(_Record):
    """The decisions of one gated block over all images.

    Attributes:
        name: The block's name in the network.
        option_share: Share of images for each option.
        entropy_bits: Entropy of these shares, in bits.
        macs: Multiply-accumulates of the block for one image.
    """

    name: Name
    option_share: Shares
    entropy_bits: NonNegative | None = None
    macs: Count | None = None


class ClassResult(_Record):
    """One class of images: how many, how well, at what cost."""

    name: Name
    images: Count
    accuracy: Share
    cp: Share
    option_share: Shares | None = None


class StaticPoint(_Record):
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


class Example(_Record):
    """One image and the path it took.

    Attributes:
        index: Its position in the split.
        label: Its true class.
        predicted: The class the network gave.
        cp: Its computation percentage as a share.
        path: The option taken in each gated block.
        png: The image, a PNG in base64.
    """

    index: Count
    label: Name
    predicted: Name
    cp: Share
    path: Annotated[tuple[OptionLabel, ...], Field(min_length=1)]
    png: Annotated[str, AfterValidator(_is_png)]

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.label == self.predicted


class Examples(_Record):
    """The images that cost least and most."""

    easiest: tuple[Example, ...] = ()
    hardest: tuple[Example, ...] = ()


class EvaluationRecord(_Record):
    """What one evaluation of one checkpoint measured.

    Attributes:
        images: Number of images.
        accuracy: Share of them classified correctly.
        cp: Computation percentage as a share: mean of (bits / 32)² over images and gated blocks.
        bitops_ratio: Everything executed, gates included, over the same network at 32 bits.
        option_share: Share of decisions for each option.
        decision_entropy_bits: Mean over blocks of the entropy of their decisions, in bits.
        seconds: Time the evaluation took.
        blocks: Per gated block, in order of execution.
        classes: Per class.
        static: The network with one option everywhere.
        examples: The images that cost least and most.
    """

    schema_: Literal["fracskip.evaluation/1"] = Field(alias="schema")
    checkpoint: Checkpoint
    data: DataSplit
    images: Annotated[int, Field(strict=True, ge=1)]
    accuracy: Share
    cp: Share
    bitops_ratio: NonNegative
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
        known = set(self.checkpoint.options)
        examples = [*self.examples.easiest, *self.examples.hardest]
        shares = [self.option_share, *(block.option_share for block in self.blocks)]
        shares += [item.option_share for item in self.classes if item.option_share is not None]
        used = {label for share in shares for label in share}
        used |= {label for example in examples for label in example.path}
        if used - known:
            raise ValueError(
                f"option {min(used - known)!r} is not among the checkpoint's options; it has "
                f"{', '.join(self.checkpoint.options)}"
            )
        return self

    @model_validator(mode="after")
    def _paths_fit_the_blocks(self) -> EvaluationRecord:
        paths = [item.path for item in (*self.examples.easiest, *self.examples.hardest)]
        lengths = {len(path) for path in paths}
        wanted = len(self.blocks) or max(lengths, default=0)
        if lengths - {wanted}:
            raise ValueError(
                f"every path needs one option per gated block, {wanted} here; "
                f"one has {min(lengths - {wanted})}"
            )
        return self


class SweepPoint(_Record):
    """The network at one budget.

    Attributes:
        budget: The computation share that was asked for.
        accuracy: Share of images classified correctly.
        cp: The computation percentage that it came to, as a share.
        bitops_ratio: Everything executed, gates included, over the same network at 32 bits.
        option_share: Share of decisions for each option.
        decision_entropy_bits: Mean over blocks of the entropy of their decisions, in bits.
        seconds: Time it took.
        blocks: Per gated block, in order of execution.
    """

    budget: Share
    accuracy: Share
    cp: Share
    bitops_ratio: NonNegative
    option_share: Shares
    decision_entropy_bits: NonNegative | None = None
    seconds: NonNegative = 0.0
    blocks: tuple[Block, ...] = ()


class SweepRecord(_Record):
    """What one checkpoint does at several budgets.

    Attributes:
        images: Number of images.
        points: By budget, ascending.
    """

    schema_: Literal["fracskip.sweep/1"] = Field(alias="schema")
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
        known = set(self.checkpoint.options)
        shares = [point.option_share for point in self.points]
        shares += [block.option_share for point in self.points for block in point.blocks]
        used = {label for share in shares for label in share}
        if used - known:
            raise ValueError(
                f"option {min(used - known)!r} is not among the checkpoint's options; it has "
                f"{', '.join(self.checkpoint.options)}"
            )
        return self


class Validation(_Record):
    """The state of a run on its validation images."""

    accuracy: Share
    cp: Share | None = None
    loss: Finite | None = None


class Epoch(_Record):
    """One epoch of a run.

    Attributes:
        stage: Which of the stages it belongs to.
        epoch: Its number.
        step: Optimiser steps so far.
        loss: Mean training loss.
        accuracy: On the training images.
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
    cp: Share | None = None
    lr: NonNegative | None = None
    seconds: NonNegative | None = None
    validation: Validation | None = None


class RunRecord(_Record):
    """What a training run went through.

    Attributes:
        name: The run's name.
        recipe: Its recipe, as it was written.
        epochs: In order; an epoch repeated after a resume counts once, the last time.
        test: The evaluation at its end.
        seconds: Time it took; None while it has not ended.
    """

    schema_: Literal["fracskip.run/1"] = Field(alias="schema")
    name: Name
    recipe: dict[str, Any] = {}
    versions: dict[Name, Name] = {}
    device: Name | None = None
    epochs: tuple[Epoch, ...] = ()
    test: EvaluationRecord | None = None
    seconds: NonNegative | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its end."""
        return self.seconds is not None
