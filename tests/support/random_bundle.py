"""Random valid bundles of arbitrary residual shapes.

Scales are drawn so that levels spread over their grids: neither dead nor saturated.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.cost import BlockProfile, NetworkProfile, conv_macs
from fracskip.options import Option
from fracskip.runtime.bundle import encode_bundle
from fracskip.runtime.elements import TensorSpec
from fracskip.runtime.operations import ConvOp
from fracskip.runtime.plan import NamedProgram, Plan

Size = tuple[int, int]
Geometry = dict[str, Any]


def random_bundle(
    seed: int,
    *,
    blocks: Literal["basic", "bottleneck"] = "basic",
    stream: Literal["int8", "float"] = "int8",
    options: Sequence[str | int] = ("skip", 4, 8, "full"),
    image: Size = (16, 16),
    channels: int = 3,
    stem7: bool = False,
    widths: Sequence[int] = (16, 32),
    depth: int = 2,
    first: str | int = "full",
    ends: str | int = "full",
    gate: Literal["recurrent", "feedforward"] = "recurrent",
    gate_width: int = 6,
    budget_input: bool = False,
    output: Literal["logit", "sensitivity"] = "logit",
    multiplier: float = 0.0,
    classes: int = 5,
    uneven: bool = False,
) -> bytes:
    """A valid bundle with random weights.

    Args:
        seed: All values follow from it.
        blocks: Two 3x3 convolutions a block, or 1x1, 3x3, 1x1 with a fourfold output.
        stream: What runs between blocks.
        options: Of the gated blocks; one option makes a static network.
        image: Height and width, 8 at least.
        channels: Of the image, 1 or 3.
        stem7: A 7x7 stem of stride 2 and a 3x3 max pool of stride 2 instead of a 3x3 stem.
        widths: Channels of each stage; all but the first begin with stride 2. A stage whose
            shape does not change begins with an identity shortcut.
        depth: Blocks a stage.
        first: The option of the first block, which is not gated.
        ends: The option of stem and head.
        gate: Its kind.
        gate_width: Its width.
        budget_input: Whether it takes a budget.
        output: What its last layer gives.
        multiplier: Of cost, where no budget is asked for.
        classes: Of the head.
        uneven: Whether windows pad one side of an image more than the other, each in its own way.
    """
    plan = random_plan(
        blocks=blocks,
        stream=stream,
        options=options,
        image=image,
        channels=channels,
        stem7=stem7,
        widths=widths,
        depth=depth,
        first=first,
        ends=ends,
        gate=gate,
        gate_width=gate_width,
        budget_input=budget_input,
        output=output,
        multiplier=multiplier,
        classes=classes,
        uneven=uneven,
    )
    return encode_bundle(plan, random_tensors(plan, seed))[0]


def random_images(plan: Plan, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images of unlike brightness, (count, H, W, C), so that decisions differ between them."""
    draw = np.random.default_rng(seed)
    shape = (count, *plan.image.size, plan.image.channels)
    peaks = np.linspace(40, 255, count)[:, None, None, None]
    return (draw.random(shape) * peaks).astype(np.uint8)


# -- the plan -------------------------------------------------------------------------------------


@dataclass
class _Shapes:
    """Builds parts one after the other and counts what they cost."""

    channels: int
    size: Size
    draw: random.Random | None = None  # of paddings; None: those of both sides are alike
    macs: list[BlockProfile] = field(default_factory=list)
    parts: list[Geometry] = field(default_factory=list)

    def conv(
        self, taken: int, channels: int, kernel: int, stride: int, act: str = "none"
    ) -> tuple[Geometry, int]:
        """Goes through a convolution of a value, padded to keep its size: what it is, its MACs."""
        padding = self.padding(kernel)
        geometry = {
            "op": "conv",
            "in": [taken],
            "channels": [self.channels, channels],
            "kernel": [kernel, kernel],
            "stride": [stride, stride],
            "padding": padding,
            "dilation": [1, 1],
            "groups": 1,
            "act": act,
        }
        self.size = slide(self.size, kernel, stride, padding)
        macs = conv_macs(self.channels, channels, (kernel, kernel), self.size)
        self.channels = channels
        return geometry, macs

    def padding(self, kernel: int) -> list[int]:
        """Top, left, bottom and right, by which an image keeps its size."""
        if self.draw is None:
            return [kernel // 2] * 4
        top, left = (self.draw.randrange(kernel) for _ in range(2))
        return [top, left, kernel - 1 - top, kernel - 1 - left]

    def fixed(self, name: str, option: str, branch: list[Geometry]) -> None:
        """Adds a part that is always executed and has no shortcut."""
        self.parts.append(
            {
                "name": name,
                "gated": False,
                "options": [option],
                "residual": False,
                "skip_is_identity": False,
                "branch": branch,
                "shortcut": [],
                "shortcut_option": None,
                "after": [],
            }
        )

    def block(
        self,
        kind: str,
        width: int,
        stride: int,
        options: list[str],
        gated: bool,
        projection: str,
    ) -> None:
        """Adds a residual block; `projection` is the option of its shortcut, if it computes."""
        entry = self.channels, self.size
        if kind == "basic":
            convs = [self.conv(0, width, 3, stride, "relu"), self.conv(1, width, 3, 1)]
        else:
            convs = [
                self.conv(0, width, 1, 1, "relu"),
                self.conv(1, width, 3, stride, "relu"),
                self.conv(2, 4 * width, 1, 1),
            ]
        leaving = self.channels, self.size
        shortcut, shortcut_macs = [], 0
        if leaving != entry:
            self.channels, self.size = entry
            geometry, shortcut_macs = self.conv(0, leaving[0], 1, stride)
            shortcut = [geometry]
            assert self.size == leaving[1]
        name = f"block{len(self.macs)}"
        self.parts.append(
            {
                "name": name,
                "gated": gated,
                "options": options,
                "residual": True,
                "skip_is_identity": not shortcut,
                "branch": [geometry for geometry, _ in convs],
                "shortcut": shortcut,
                "shortcut_option": projection if shortcut else None,
                "after": [{"op": "act", "in": [0], "act": "relu"}],
            }
        )
        branch_macs = sum(macs for _, macs in convs)
        self.macs.append(BlockProfile(name, branch_macs, shortcut_macs, 0, gated))


def slide(size: Size, kernel: int, stride: int, padding: Sequence[int]) -> Size:
    sums = padding[0] + padding[2], padding[1] + padding[3]
    height, width = (
        (length + both - kernel) // stride + 1 for length, both in zip(size, sums, strict=True)
    )
    return height, width


def random_plan(
    *,
    blocks: str = "basic",
    stream: str = "int8",
    options: Sequence[str | int] = ("skip", 4, 8, "full"),
    image: Size = (16, 16),
    channels: int = 3,
    stem7: bool = False,
    widths: Sequence[int] = (16, 32),
    depth: int = 2,
    first: str | int = "full",
    ends: str | int = "full",
    gate: str = "recurrent",
    gate_width: int = 6,
    budget_input: bool = False,
    output: Literal["logit", "sensitivity"] = "logit",
    multiplier: float = 0.0,
    classes: int = 5,
    uneven: bool = False,
) -> Plan:
    """The plan of `random_bundle`."""
    labels = [Option.parse(option).label for option in options]
    outer, projection = Option.parse(ends).label, "8" if stream == "int8" else "full"
    shapes = _Shapes(channels, image, random.Random(0) if uneven else None)
    kernel, stride = (7, 2) if stem7 else (3, 1)
    geometry, stem_macs = shapes.conv(0, widths[0], kernel, stride, "relu")
    stem = [geometry]
    if stem7:
        padding = [0, 1, 1, 0] if uneven else [1] * 4
        window = {"kernel": [3, 3], "stride": [2, 2], "padding": padding}
        stem.append({"op": "pool", "in": [1], "kind": "max", "count_padding": False, **window})
        shapes.size = slide(shapes.size, 3, 2, padding)
    shapes.fixed("stem", outer, stem)
    for stage, width in enumerate(widths):
        for position in range(depth):
            ungated = stage == position == 0
            own = [Option.parse(first).label] if ungated else labels
            stride = 2 if stage and not position else 1
            shapes.block(blocks, width, stride, own, not ungated, projection)
    shapes.size = (1, 1)
    geometry, head_macs = shapes.conv(1, classes, 1, 1)
    shapes.fixed("head", outer, [{"op": "mean", "in": [0]}, geometry])
    tree = {
        "schema": "fracskip.bundle",
        "version": 4,
        "name": f"random {blocks}",
        "source": "",
        "data_name": "random",
        "class_names": [f"class {index}" for index in range(classes)],
        "image": {
            "size": list(image),
            "channels": channels,
            "mean": [0.45 + 0.01 * channel for channel in range(channels)],
            "std": [0.25 + 0.01 * channel for channel in range(channels)],
        },
        "options": labels,
        "stream": stream,
        "network": {"parts": shapes.parts, "classes": classes},
        "gate": None,
        "operating_points": {
            "target": 0.1,
            "multiplier": multiplier,
            "multiplier_curve": [],
            "cascade": [],
        },
    }
    if len(labels) > 1:
        own = {"width": gate_width, "budget_input": budget_input, "output": output}
        tree["gate"] = {"kind": gate, **own}
    bits = Option.parse(outer).bits
    cost = NetworkProfile(stem_macs, tuple(shapes.macs), head_macs, bits, bits)
    # Validated from JSON, as a reader does.
    tree["cost"] = {**vars(cost), "blocks": [vars(block) for block in cost.blocks]}
    return Plan.model_validate_json(json.dumps(tree))


# -- tensors --------------------------------------------------------------------------------------

STEP = 0.02  # of an int8 stream: 255 levels reach 5.1
SPREAD = 0.35  # standard deviation of what a convolution gives, as a share of the grid


def random_tensors(plan: Plan, seed: int) -> dict[str, NDArray[Any]]:
    """Tensors for a plan. Optional ones are left out at random, levels of 0 always."""
    draw = np.random.default_rng(seed)
    table = plan.tensor_table
    tensors: dict[str, NDArray[Any]] = {}
    for name, spec in table.items():
        if spec.bits:
            weights = draw.integers(-spec.largest, spec.largest + 1, spec.shape)
            tensors[name] = weights.astype(np.int8)
    present = {
        name
        for name, spec in table.items()
        if not spec.optional or (not name.endswith(".zero") and draw.random() < 0.5)
    }
    programs = {program.name: program for program in plan.programs}
    for name, spec in table.items():
        if name in present and not spec.bits:
            kind, *path = name.split(".")
            if kind == "gate":
                value = _of_gate(plan, path, spec, draw)
            elif path[1] == "step":
                value = _step(plan, tensors, int(path[0]), draw)
            else:
                program = programs[name.rsplit(".", 2)[0]]
                value = _of_program(plan, program, present, int(path[2]), path[3], spec, draw)
            tensors[name] = value.astype(np.float32)
    return tensors


def _step(
    plan: Plan, tensors: dict[str, NDArray[Any]], index: int, draw: np.random.Generator
) -> NDArray[np.float64]:
    part = plan.network.parts[index]
    if part.residual and not part.shortcut:
        return tensors[f"parts.{index - 1}.step"].astype(np.float64)
    return STEP * draw.uniform(0.6, 1.4, (1,))


def _of_gate(
    plan: Plan, path: list[str], spec: TensorSpec, draw: np.random.Generator
) -> NDArray[np.float64]:
    normal = draw.normal(size=spec.shape)
    if path[0] == "out" and path[-1] == "bias" and plan.gate and plan.gate.output == "sensitivity":
        # Logarithms: 0.01 nats, and less for dearer options.
        return normal - 7 - 1.5 * np.arange(spec.shape[-1])
    if path[-1] == "weight" and path[0] in ("embed", "out"):
        return 2.5 * normal
    return normal / np.sqrt(spec.shape[-1] if len(spec.shape) == 2 else 4)


def _of_program(
    plan: Plan,
    program: NamedProgram,
    present: set[str],
    position: int,
    kind: str,
    spec: TensorSpec,
    draw: np.random.Generator,
) -> NDArray[np.float64]:
    """Terms of a convolution: values of order one between full ones, levels between others."""
    normal, uneven = draw.normal(size=spec.shape), draw.uniform(0.6, 1.4, spec.shape)
    bits = program.bits
    top = 2**bits - 1
    if kind == "input":
        return top / 3 / uneven
    op = program.ops[position]
    assert isinstance(op, ConvOp)
    fan = op.channels[0] * op.kernel[0] * op.kernel[1]
    convs = [place for place, each in enumerate(program.ops) if isinstance(each, ConvOp)]
    ends = position == convs[-1]
    # What it gives is of this size.
    aim = 1.0
    if ends and program.name.rpartition(".")[0] != f"parts.{len(plan.network.parts) - 1}":
        unit = 1 / STEP if plan.stream == "int8" else 1.0
        # A residual is smaller than the stream; a shortcut keeps its size.
        aim = unit * (0.8 if program.name.endswith("shortcut") or program.entry is None else 0.5)
    elif not ends and bits and f"{program.name}.{position + 1}.input" not in present:
        aim = SPREAD * top
    if kind == "bias":
        return 0.3 * aim * normal
    if kind == "weight":
        return aim * normal / np.sqrt(fan)
    # Levels arrive with about a third of their range, weights with 0.58 of theirs.
    raw = program.may_take_levels(position) and f"{program.name}.{position}.input" not in present
    reach = 0.33 * (50 if raw else top)
    return aim * uneven / (np.sqrt(fan) * 0.58 * (2 ** (bits - 1) - 1) * max(reach, 1.0))
