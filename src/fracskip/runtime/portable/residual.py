"""CIFAR ResNets: bundles of version 1.

Levels and values are float32 tensors (B, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.options import Option
from fracskip.runtime.plan import WIDEST_INTEGERS
from fracskip.runtime.portable.tensors import Tensors, exact_type, route, to_levels
from fracskip.runtime.residual import ConvGeometry, NetworkPlan, ResidualPlan, StemConv


class _Convolution:
    """y = acc · scale + bias over integers, or a float convolution."""

    def __init__(self, tensors: Tensors, name: str, conv: ConvGeometry) -> None:
        weight = tensors[f"{name}.weight"]
        self.is_integer = weight.dtype == torch.int8
        self._bias = tensors[f"{name}.bias"]
        self._dtype = exact_type(weight) if self.is_integer else torch.float32
        if self.is_integer:
            self._scale = tensors[f"{name}.scale"][:, None, None]
            self._offset = self._bias[:, None, None]
        self._weight = (
            weight.to(self._dtype).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        )
        self._stride, self._padding = conv.stride, conv.padding

    def __call__(self, x: Tensor) -> Tensor:
        """Levels, or values for a float convolution, to values: (B, I, H, W) -> (B, O, H', W')."""
        if not self.is_integer:
            return F.conv2d(x, self._weight, self._bias, self._stride, self._padding)
        acc = F.conv2d(x.to(self._dtype), self._weight, None, self._stride, self._padding)
        # In place, and not as one operation: each step rounds once.
        return acc.to(torch.float32).mul_(self._scale).add_(self._offset)


class _Branch:
    """A block's residual branch at one option: the stream (B, C, H, W) -> (B, C', H', W')."""

    def __init__(
        self,
        tensors: Tensors,
        name: str,
        geometry: tuple[ConvGeometry, ...],
        option: Option,
        step: Tensor | None,
    ) -> None:
        self._convs = [
            _Convolution(tensors, f"{name}.{position}", conv)
            for position, conv in enumerate(geometry)
        ]
        self._bits = option.bits if self._convs[0].is_integer else 0
        self._step = step
        self._inverse = tensors[f"{name}.input"] if f"{name}.input" in tensors else None

    def _entry(self, x: Tensor) -> Tensor:
        if self._bits and self._inverse is None:
            return x
        values = x if self._step is None else x * self._step
        return (
            to_levels(values * self._inverse, self._bits) if self._inverse is not None else values
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = self._entry(x)
        for position, conv in enumerate(self._convs):
            if position:
                x = to_levels(x, self._bits) if self._bits else x.relu_()
            x = conv(x)
        return x


class _Block:
    """Every option of one residual block."""

    def __init__(
        self, network: NetworkPlan, tensors: Tensors, index: int, step: Tensor | None
    ) -> None:
        plan = network.blocks[index]
        name = f"blocks.{index}"
        self._integer_stream = step is not None
        self._shortcut = None
        if plan.shortcut is not None:
            self._shortcut = _Convolution(tensors, f"{name}.shortcut", plan.shortcut)
        self._branches: list[_Branch | None] = []
        for option in map(Option.parse, plan.options):
            branch = None
            if not option.is_skip:
                branch = _Branch(tensors, f"{name}.{option.label}", plan.branch, option, step)
            self._branches.append(branch)

    def execute(self, x: Tensor, option: int) -> Tensor:
        """One option for all images: (B, C, H, W) -> (B, C', H', W')."""
        branch = self._branches[option]
        if branch is None and self._shortcut is None:
            return x
        y = x if self._shortcut is None else self._shortcut(x)
        if branch is not None:
            y = branch(x).add_(y)
        return to_levels(y, WIDEST_INTEGERS) if self._integer_stream else y.relu_()


class ResidualTrunk:
    """See `Trunk`.

    Args:
        plan: The network's.
        tensors: The bundle's.
    """

    def __init__(self, plan: ResidualPlan, tensors: Tensors) -> None:
        self._plan = plan
        self._stem = [
            (op, _Convolution(tensors, f"stem.{index}", op) if isinstance(op, StemConv) else None)
            for index, op in enumerate(plan.network.stem)
        ]
        steps = tensors["stream.steps"] if plan.integer_stream else None
        self._steps = steps
        self._entry_stages = (0, *plan.stages[:-1])
        self._blocks = [
            _Block(plan.network, tensors, index, None if steps is None else steps[stage])
            for index, stage in enumerate(self._entry_stages)
        ]
        blocks = enumerate(plan.network.blocks)
        self._gated = [index for index, block in blocks if block.gated]
        self._head = tensors["head.weight"], tensors["head.bias"]

    def begin(self, images: Tensor) -> Tensor:
        """See `Trunk.begin`."""
        return self._always(0, self.stem(images))

    def stem(self, images: Tensor) -> Tensor:
        """The stream that the first block sees."""
        x = images
        for op, conv in self._stem:
            if conv is not None:
                x = conv(x).relu_()
            else:
                x = F.max_pool2d(x, op.kernel, op.stride, op.padding)
        return x if self._steps is None else to_levels(x, WIDEST_INTEGERS)

    def _always(self, index: int, x: Tensor) -> Tensor:
        """The ungated blocks from one on, up to the next gated one."""
        for block, plan in zip(
            self._blocks[index:], self._plan.network.blocks[index:], strict=True
        ):
            if plan.gated:
                break
            x = block.execute(x, 0)
        return x

    def pool(self, gated: int, x: Tensor) -> Tensor:
        """See `Trunk.pool`: in the values that the stream stands for."""
        return self._mean(x, self._entry_stages[self._gated[gated]])

    def _mean(self, x: Tensor, stage: int) -> Tensor:
        if self._steps is None:
            return x.mean((2, 3))
        # A sum of integers: exact in float64, rounded once.
        total = x.sum((2, 3), dtype=torch.float64).to(torch.float32)
        return total * (self._steps[stage] / (x.shape[2] * x.shape[3]))

    def execute(self, gated: int, x: Tensor, choice: Tensor) -> Tensor:
        """See `Trunk.execute`."""
        index = self._gated[gated]
        return self._always(index + 1, route(x, choice, self._blocks[index].execute))

    def head(self, x: Tensor) -> Tensor:
        """See `Trunk.head`."""
        return F.linear(self._mean(x, self._plan.stages[-1]), *self._head)

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """See `Trunk.kernels`."""
        found = []
        for block in self._plan.network.blocks:
            for option in map(Option.parse, block.options):
                width = f"int{option.bits}" if option.bits <= WIDEST_INTEGERS else "float32"
                count = 0 if option.is_skip else len(block.branch)
                found.append((block.name, option.label, [f"torch_{width}"] * count))
        return found
