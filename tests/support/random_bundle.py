"""Random valid bundles of arbitrary residual shapes.

Scales are drawn so that levels spread over their grids: neither dead nor saturated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.cost import BlockProfile, NetworkProfile, conv_macs, linear_macs
from fracskip.options import Option
from fracskip.runtime.bundle import encode_bundle
from fracskip.runtime.plan import TensorSpec
from fracskip.runtime.residual import ResidualPlan

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
    gate: Literal["recurrent", "feedforward"] = "recurrent",
    gate_width: int = 6,
    budget_input: bool = False,
    output: Literal["logit", "harm"] = "logit",
    lean: float = 0.0,
    classes: int = 5,
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
        gate: Its kind.
        gate_width: Its width.
        budget_input: Whether it takes a budget.
        output: What it says of an option.
        lean: On its decisions, where output is 'harm'.
        classes: Of the head.
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
        gate=gate,
        gate_width=gate_width,
        budget_input=budget_input,
        output=output,
        lean=lean,
        classes=classes,
    )
    return encode_bundle(plan, random_tensors(plan, seed))[0]


def random_images(plan: ResidualPlan, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images of unlike brightness, (count, H, W, C), so that decisions differ between them."""
    draw = np.random.default_rng(seed)
    shape = (count, *plan.image.size, plan.image.channels)
    peaks = np.linspace(40, 255, count)[:, None, None, None]
    return (draw.random(shape) * peaks).astype(np.uint8)


# -- the plan -------------------------------------------------------------------------------------


@dataclass
class _Shapes:
    """Builds blocks one after the other and counts what they cost."""

    channels: int
    size: Size
    macs: list[BlockProfile] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)

    def conv(self, channels: int, kernel: int, stride: int, padding: int) -> tuple[Geometry, int]:
        """Goes through a convolution: its geometry, and its MACs."""
        geometry = {
            "in": self.channels,
            "out": channels,
            "kernel": [kernel, kernel],
            "stride": [stride, stride],
            "padding": [padding, padding],
        }
        self.size = slide(self.size, kernel, stride, padding)
        macs = conv_macs(self.channels, channels, (kernel, kernel), self.size)
        self.channels = channels
        return geometry, macs

    def block(self, kind: str, width: int, stride: int, options: list[str], gated: bool) -> None:
        entry = self.channels, self.size
        if kind == "basic":
            convs = [self.conv(width, 3, stride, 1), self.conv(width, 3, 1, 1)]
        else:
            convs = [
                self.conv(width, 1, 1, 0),
                self.conv(width, 3, stride, 1),
                self.conv(4 * width, 1, 1, 0),
            ]
        leaving = self.channels, self.size
        shortcut, shortcut_macs = None, 0
        if leaving != entry:
            self.channels, self.size = entry
            shortcut, shortcut_macs = self.conv(leaving[0], 1, stride, 0)
            assert self.size == leaving[1]
        name = f"block{len(self.plans)}"
        self.plans.append(
            {
                "name": name,
                "gated": gated,
                "options": options,
                "branch": [geometry for geometry, _ in convs],
                "shortcut": shortcut,
            }
        )
        branch_macs = sum(macs for _, macs in convs)
        self.macs.append(BlockProfile(name, branch_macs, shortcut_macs, 0, gated))


def slide(size: Size, kernel: int, stride: int, padding: int) -> Size:
    height, width = ((length + 2 * padding - kernel) // stride + 1 for length in size)
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
    gate: str = "recurrent",
    gate_width: int = 6,
    budget_input: bool = False,
    output: Literal["logit", "harm"] = "logit",
    lean: float = 0.0,
    classes: int = 5,
) -> ResidualPlan:
    """The plan of `random_bundle`."""
    labels = [Option.parse(option).label for option in options]
    shapes = _Shapes(channels, image)
    kernel, stride, padding = (7, 2, 3) if stem7 else (3, 1, 1)
    geometry, stem_macs = shapes.conv(widths[0], kernel, stride, padding)
    stem: list[Geometry] = [{"op": "conv", **geometry}]
    if stem7:
        stem.append({"op": "maxpool", "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]})
        shapes.size = slide(shapes.size, 3, 2, 1)
    for stage, width in enumerate(widths):
        for position in range(depth):
            ungated = stage == position == 0
            own = [Option.parse(first).label] if ungated else labels
            stride = 2 if stage and not position else 1
            shapes.block(blocks, width, stride, own, not ungated)
    tree = {
        "schema": "fracskip.bundle",
        "version": 1,
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
        "target": 0.1,
        "network": {"stem": stem, "blocks": shapes.plans, "classes": classes},
        "gate": None,
    }
    if len(labels) > 1:
        tree["gate"] = {"kind": gate, "width": gate_width, "budget_input": budget_input}
        if output == "harm":
            tree["gate"] |= {"output": output, "lean": lean}
    cost = NetworkProfile(stem_macs, tuple(shapes.macs), linear_macs(shapes.channels, classes))
    # Validated from JSON, as a reader does.
    tree["cost"] = _plain(cost)
    return ResidualPlan.model_validate_json(json.dumps(tree))


def _plain(cost: NetworkProfile) -> dict[str, Any]:
    return {
        "stem_macs": cost.stem_macs,
        "head_macs": cost.head_macs,
        "blocks": [vars(block) for block in cost.blocks],
    }


# -- tensors --------------------------------------------------------------------------------------

STEP = 0.02  # of an int8 stream: 255 levels reach 5.1
SPREAD = 0.35  # standard deviation of what a convolution gives, as a share of the grid


def random_tensors(plan: ResidualPlan, seed: int) -> dict[str, NDArray[Any]]:
    """Tensors for a plan. Optional ones are left out at random."""
    draw = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, spec in plan.tensor_table.items():
        if spec.bits:
            weights = draw.integers(-spec.largest, spec.largest + 1, spec.shape)
            tensors[name] = weights.astype(np.int8)
    for name, spec in plan.tensor_table.items():
        if not spec.bits and not (spec.optional and draw.random() < 0.5):
            tensors[name] = _floats(plan, name, spec, draw).astype(np.float32)
    return tensors


def _floats(
    plan: ResidualPlan, name: str, spec: TensorSpec, draw: np.random.Generator
) -> NDArray[np.float64]:
    normal, uneven = draw.normal(size=spec.shape), draw.uniform(0.6, 1.4, spec.shape)
    kind, *path = name.split(".")
    if name == "stream.steps":
        return STEP * uneven
    if kind == "stem":
        last = max(index for index, op in enumerate(plan.network.stem) if op.op == "conv")
        unit = _unit(plan) if int(path[0]) == last else 1.0
        fan = np.prod(spec.shape[1:]) if path[1] == "weight" else 9.0
        return unit * normal / np.sqrt(fan)
    if kind == "blocks":
        return _of_block(plan, path, spec, normal, uneven)
    if kind == "gate" and path[0] == "out" and path[-1] == "bias" and plan.gate.output == "harm":
        # Logarithms of harms: 0.01 nats, and less for dearer options.
        return normal - 7 - 1.5 * np.arange(spec.shape[-1])
    if kind == "gate" and path[-1] == "weight" and path[0] in ("embed", "out"):
        return 2.5 * normal
    fan = spec.shape[-1] if len(spec.shape) == 2 else 4
    return normal / np.sqrt(fan)


def _unit(plan: ResidualPlan) -> float:
    """What 1.0 is, in what the stream carries."""
    return 1 / STEP if plan.integer_stream else 1.0


def _of_block(
    plan: ResidualPlan, path: list[str], spec: TensorSpec, normal: Any, uneven: Any
) -> NDArray[np.float64]:
    """Terms of a block: values of order one between full convolutions, levels between others."""
    block = plan.network.blocks[int(path[0])]
    unit = _unit(plan)
    if path[1] == "shortcut":
        conv, last, bits = block.shortcut, True, 8 if plan.integer_stream else 0
        first, branch_bits = True, 8
    else:
        option = Option.parse(path[1])
        if path[2] == "input":
            return (2**option.bits - 1) / 3 / uneven
        position = int(path[2])
        conv, last = block.branch[position], position == len(block.branch) - 1
        first, bits = position == 0, option.bits if option.bits <= 8 else 0
        branch_bits = bits
    assert conv is not None
    fan = conv.in_channels * conv.kernel[0] * conv.kernel[1]
    top = 2**branch_bits - 1 if bits else 1
    # A residual is smaller than the stream; a shortcut keeps its size.
    aim = unit * (0.8 if path[1] == "shortcut" else 0.5) if last else SPREAD * top
    if path[-1] == "bias":
        return 0.3 * aim * normal
    if path[-1] == "weight":
        return (aim if last else 1.0) * normal / np.sqrt(fan)
    # Levels arrive with about a third of their range, weights with 0.58 of theirs.
    largest = 2 ** (bits - 1) - 1
    reach = 0.33 * (50 if first and plan.integer_stream and bits == 8 else top)
    return aim * uneven / (np.sqrt(fan) * 0.58 * largest * max(reach, 1.0))
