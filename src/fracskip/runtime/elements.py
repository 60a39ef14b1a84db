"""What a bundle's plan is made of: limits, windows, the gate, what tensors must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fracskip.config import Fraction
from fracskip.operating import Cascade, Multiplier, MultiplierCurve, OperatingPoints
from fracskip.options import OptionSet
from fracskip.quant.affine import IntegerGrid

SCHEMA: Literal["fracskip.bundle"] = "fracskip.bundle"
WIDEST_INTEGERS = 8  # wider options execute in floating point
HIGHEST_LEVEL = (1 << WIDEST_INTEGERS) - 1
MAX_BLOCKS = 4096
MAX_VALUES = 2**18  # of JSON
MAX_EXECUTIONS = 2**18  # operations times options
MAX_ELEMENTS = 2**31
MAX_ACTIVATION_BYTES = 2**30
MAX_TOTAL_BYTES = 2**32  # of all activations of one image together
MAX_MACS = 2**53

Size = tuple[int, int]
Positive = Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]


class Strict(BaseModel):
    """Nothing unknown, nothing converted, nothing changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True, strict=True
    )


class Window(Strict):
    """What slides over an image.

    Attributes:
        kernel: Height and width.
        stride: Likewise.
        padding: Rows and columns around the image: top, left, bottom, right.
    """

    kernel: tuple[Positive, Positive]
    stride: tuple[Positive, Positive]
    padding: tuple[NotNegative, NotNegative, NotNegative, NotNegative]

    def out_size(self, size: Size) -> Size:
        """Height and width of what comes out.

        Raises:
            ValueError: if the padded image is smaller than the kernel.
        """
        top, left, bottom, right = self.padding
        height, width = (
            (length - kernel) // stride + 1
            for length, kernel, stride in zip(
                (size[0] + top + bottom, size[1] + left + right),
                self.kernel,
                self.stride,
                strict=True,
            )
        )
        if height < 1 or width < 1:
            raise ValueError(f"a kernel of {self.kernel} does not fit an image of {size}")
        return height, width


def canonical(labels: tuple[str, ...]) -> OptionSet:
    """Options from labels that are spelled as they are written.

    Raises:
        ValueError: if they are spelled otherwise.
    """
    options = OptionSet.of(labels)
    if options.labels != labels:
        raise ValueError(f"options {list(labels)} are spelled {list(options.labels)}")
    return options


class GatePlan(Strict):
    """Who decides: see `fracskip.config.GateConfig`."""

    kind: Literal["recurrent", "feedforward"]
    width: Positive
    budget_input: bool
    output: Literal["logit", "sensitivity"]


class PlannedPoints(OperatingPoints):
    """Operating points in a bundle: all keys, nothing converted."""

    model_config = ConfigDict(strict=True)

    target: Fraction | None
    multiplier: Multiplier
    multiplier_curve: MultiplierCurve
    cascade: Cascade


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        shape: Its shape.
        bits: Width of its integers; 0 is float32.
        positive: Whether its values must be above zero.
        optional: Whether it may be absent.
        levels: Width of the levels that its values are, as whole numbers; 0: they are none.
    """

    shape: tuple[int, ...]
    bits: int = 0
    positive: bool = False
    optional: bool = False
    levels: int = 0

    @property
    def dtype(self) -> str:
        """As safetensors names it."""
        return "I8" if self.bits else "F32"

    @property
    def largest(self) -> int:
        """The largest integer of the width's grid."""
        return IntegerGrid(self.bits, signed=True).bounds[1]


class Activations:
    """Adds up what an image's values take, and refuses what is too much."""

    def __init__(self) -> None:
        self._bytes = 0

    def bounded(self, channels: int, size: Size, what: str) -> tuple[int, Size]:
        """Channels and size of a value.

        Raises:
            ValueError: if it is too large, or all values so far are together.
        """
        taken = 4 * channels * size[0] * size[1]
        if taken > MAX_ACTIVATION_BYTES:
            raise ValueError(f"{what} has activations of more than 1 GiB")
        self._bytes += taken
        if self._bytes > MAX_TOTAL_BYTES:
            raise ValueError("all activations together take more than 4 GiB")
        return channels, size


def linear_tensors(name: str, outputs: int, inputs: int) -> dict[str, TensorSpec]:
    """What a linear layer needs."""
    return {f"{name}.weight": TensorSpec((outputs, inputs)), f"{name}.bias": TensorSpec((outputs,))}


def gate_tensors(gate: GatePlan, options: int, channels: Sequence[int]) -> dict[str, TensorSpec]:
    """What a gate needs.

    Args:
        gate: Its plan.
        options: How many there are.
        channels: Of what each gated block sees.
    """
    width = gate.width
    table: dict[str, TensorSpec] = {}
    for index, inputs in enumerate(channels):
        table |= linear_tensors(f"gate.embed.{index}", width, inputs)
        if gate.kind == "feedforward":
            table |= linear_tensors(f"gate.out.{index}", options, width)
    if gate.budget_input:
        table["gate.budget.weight"] = table["gate.budget.bias"] = TensorSpec((width,))
    if gate.kind == "recurrent":
        for name in ("weight_ih", "weight_hh"):
            table[f"gate.lstm.{name}"] = TensorSpec((4 * width, width))
        table["gate.lstm.bias"] = TensorSpec((4 * width,))
        table["gate.block_bias"] = TensorSpec((len(channels), options), optional=True)
        table |= linear_tensors("gate.out", options, width)
    return table


def is_written_as(value: Any, given: Any) -> bool:
    """Whether JSON that was given says a value as it is: 3.0 and true are no integers."""
    if isinstance(value, float):
        return type(given) in (int, float) and value == given
    if type(value) is not type(given):
        return False
    if isinstance(value, dict):
        return value.keys() == given.keys() and all(
            is_written_as(item, given[key]) for key, item in value.items()
        )
    if isinstance(value, list):
        return len(value) == len(given) and all(map(is_written_as, value, given))
    return bool(value == given)
