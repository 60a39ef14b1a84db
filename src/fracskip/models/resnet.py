"""CIFAR ResNets of depth 6n + 2, with torchvision's parameter names.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3x3 stem,
three stages of n basic blocks with 16, 32 and 64 channels, global average pooling, a classifier.
Where the shape changes, the shortcut is a 1x1 convolution of stride 2 with BatchNorm.

Shapes: B batch, C channels, H height, W width, N classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.cost.profile import conv_macs, linear_macs
from fracskip.errors import ConfigError
from fracskip.models.draft import Draft
from fracskip.models.graph import Graph, Ref, StatesGraph

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + residual(x)) with two 3x3 convolutions in the residual branch."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    @property
    def branch(self) -> tuple[tuple[str, str], ...]:
        """Names of the residual branch's convolutions and their norms, with ReLUs in between."""
        return (("conv1", "bn1"), ("conv2", "bn2"))

    @property
    def projection(self) -> tuple[str, str] | None:
        """Paths of the shortcut's convolution and norm; None where it is the identity."""
        return None if self.downsample is None else ("downsample.0", "downsample.1")

    def shortcut(self, x: Tensor) -> Tensor:
        """The identity, or the projection where the shape changes."""
        return x if self.downsample is None else cast(Tensor, self.downsample(x))

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""
        out = F.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.bn2(self.conv2(out)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return F.relu(self.residual(x) + self.shortcut(x))


class CifarResNet(StatesGraph):
    """A CIFAR ResNet.

    Args:
        blocks_per_stage: n of depth 6n + 2.
        in_channels: Of the images.
        num_classes: Of the classifier.
    """

    def __init__(self, blocks_per_stage: int, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks_per_stage, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks_per_stage, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks_per_stage, stride=2)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def named_blocks(self) -> list[tuple[str, BasicBlock]]:
        """The residual blocks in order of execution, with their module paths."""
        return [
            (f"layer{index}.{position}", cast(BasicBlock, block))
            for index, stage in enumerate((self.layer1, self.layer2, self.layer3), start=1)
            for position, block in enumerate(stage)
        ]

    def stem(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 16, H, W)."""
        return F.relu(self.bn1(self.conv1(x)))

    def head(self, x: Tensor) -> Tensor:
        """(B, 64, H, W) -> logits (B, N)."""
        return cast(Tensor, self.fc(x.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, N)."""
        x = self.stem(x)
        for _, block in self.named_blocks():
            x = block(x)
        return self.head(x)

    def stated_graph(self, image: tuple[int, int, int]) -> Graph | None:
        """See `StatesGraph`."""
        parts = {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sequential, BasicBlock, CifarResNet}
        if not {type(module) for module in self.modules()} <= parts:
            return None
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        if any(conv.groups != 1 or conv.dilation != (1, 1) for conv in convolutions):
            return None
        return _Statement(self, image).graph() if self.conv1.in_channels == image[0] else None


class _Statement:
    """Adds a network's nodes to a draft, in the order of its code."""

    def __init__(self, net: CifarResNet, image: tuple[int, int, int]) -> None:
        self._net, self._draft = net, Draft(net)
        self._images = self._draft.add("images", shape=(1, *image))

    def graph(self) -> Graph:
        net = self._net
        x = self._relu(self._normed(self._images, "conv1", "bn1"))
        for name, block in net.named_blocks():
            (first, second), projection = block.branch, block.projection
            y = self._relu(self._normed(x, *first, owner=name), name)
            y = self._normed(y, *second, owner=name)
            if projection is not None:
                x = self._normed(x, *projection, owner=name, inside="downsample")
            x = self._relu(self._operation("add", "aten.add.Tensor", (y, x), name), name)
        channels = self._shape(x)[1]
        x = self._operation("mean", "aten.mean.dim", (x, [2, 3]), "", (1, channels))
        classes = net.fc.out_features
        macs = linear_macs(channels, classes)
        shape = (1, classes)
        x = self._draft.add("linear", args=(x,), shape=shape, macs=macs, path="fc", where="fc")
        return self._draft.finished(x.node)

    def _shape(self, value: Ref) -> tuple[int, ...]:
        return self._draft.nodes[value.node].shape

    def _normed(self, x: Ref, conv: str, norm: str, owner: str = "", inside: str = "") -> Ref:
        """A convolution and its BatchNorm, by their paths below a block."""
        conv, norm = (f"{owner}.{path}" if owner else path for path in (conv, norm))
        module = cast(nn.Conv2d, self._net.get_submodule(conv))
        kernel = cast(tuple[int, int], module.kernel_size)
        padding = cast(tuple[int, int], module.padding)
        high, wide = (
            (edge + 2 * pad - side) // step + 1
            for edge, side, step, pad in zip(
                self._shape(x)[2:], kernel, module.stride, padding, strict=True
            )
        )
        macs = conv_macs(module.in_channels, module.out_channels, kernel, (high, wide))
        shape = (1, module.out_channels, high, wide)
        owner = f"{owner}.{inside}" if inside else owner
        common = {"owner": owner, "shape": shape}
        y = self._draft.add("conv2d", args=(x,), macs=macs, path=conv, where=conv, **common)
        return self._draft.add("batch_norm", args=(y,), path=norm, where=norm, **common)

    def _relu(self, x: Ref, owner: str = "") -> Ref:
        return self._operation("relu", "aten.relu.default", (x,), owner)

    def _operation(
        self, op: str, target: str, args: tuple[object, ...], owner: str, shape: object = None
    ) -> Ref:
        shape = shape or self._shape(cast(Ref, args[0]))
        return self._draft.add(op, args=args, shape=shape, owner=owner, where=owner, target=target)


def _stage(in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(count - 1)))


@torch.no_grad()
def deepen(net: CifarResNet, target: CifarResNet) -> CifarResNet:
    """Fills a deeper network so that it computes what a trained one does (in evaluation mode).

    Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016,
    grow a network by layers that start as the identity. Here trained blocks are followed by new
    ones of the same shape whose last BatchNorm has gain and offset zero. Their branch gives zero
    then, and relu(x + 0) is x, because x is a ReLU's output. The gain has a gradient from the first
    step on; the new convolutions, which start at random, follow once it has left zero.

    Trained blocks keep their order; block i of a stage becomes block i · n' // n, n and n' blocks a
    stage. The blocks in between are new.

    Args:
        net: The trained network.
        target: A fresh network of at least as many blocks a stage; changed in place. What is new
            keeps its random start, except for the last BatchNorm of each new block.

    Returns:
        The target.

    Raises:
        ConfigError: if the target is shallower or has other shapes.
    """
    for (name, stage), (_, wider) in zip(
        net.named_children(), target.named_children(), strict=True
    ):
        if not isinstance(stage, nn.Sequential) or not isinstance(wider, nn.Sequential):
            _copy(stage, wider, name)
            continue
        count, wanted = len(stage), len(wider)
        if wanted < count:
            raise ConfigError(f"{name}: {wanted} blocks cannot hold {count} trained ones")
        places = {index * wanted // count: index for index in range(count)}
        for place, block in enumerate(wider):
            if place in places:
                _copy(stage[places[place]], block, f"{name}.{place}")
            else:
                assert isinstance(block, BasicBlock)
                last = block.get_submodule(block.branch[-1][1])
                assert isinstance(last, nn.BatchNorm2d)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    return target


def _copy(source: nn.Module, target: nn.Module, name: str) -> None:
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        raise ConfigError(f"{name} has another shape in the deeper network") from None
