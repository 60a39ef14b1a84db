"""Small residual networks of every kind that there are layers for, none of them ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1; one ReLU, in place, serves all; a projection pools first."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(8, 8, 3, stride, groups=2), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = conv(8, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride), conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PreActivation(nn.Module):
    """Norms and ReLUs before convolutions; a projection sees what the first of them sees."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.project = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        before = F.relu(self.norm1(x))
        shortcut = x if self.project is None else self.project(before)
        out = self.conv2(F.relu(self.norm2(self.conv1(before))))
        return shortcut + out


class Inverted(nn.Module):
    """MobileNet's: depthwise, squeeze-and-excitation, signed values between blocks."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        wide = 2 * inputs
        self.expand = nn.Sequential(conv(inputs, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(
            conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide), nn.SiLU(inplace=True)
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project = nn.Sequential(conv(wide, outputs, 1), nn.BatchNorm2d(outputs))
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.depth(self.expand(x))
        scale = self.excite(F.relu(self.squeeze(out.mean((2, 3), keepdim=True)))).sigmoid()
        out = self.project(out * scale)
        return x + out if self.same else out


class Patchwise(nn.Module):
    """ConvNeXt's: depthwise, LayerNorm and linear layers on permuted values, a scale of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        assert inputs == outputs
        self.depth = nn.Conv2d(inputs, inputs, 5, padding=2, groups=inputs)
        self.norm = nn.LayerNorm(inputs)
        self.wide, self.narrow = nn.Linear(inputs, 2 * inputs), nn.Linear(2 * inputs, inputs)
        self.scale = nn.Parameter(torch.full((inputs, 1, 1), 0.5))
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depth(x).permute(0, 2, 3, 1))
        out = self.narrow(F.gelu(self.wide(out))).permute(0, 3, 1, 2)
        return self.drop(self.scale * out) + self.drop(x)


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around images by TensorFlow's "SAME": most of an odd number at the end."""
    needed = [
        max((math.ceil(edge / stride) - 1) * stride + kernel - edge, 0) for edge in x.shape[2:]
    ]
    high, wide = needed
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


class Same(nn.Module):
    """Padded by the image's size: one side more than the other where a stride or a kernel is even.

    The first convolution pads what the block takes, and so does the projection's pool.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, 16, 3, stride), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 2, groups=4)
        self.pad, self.depth = nn.ZeroPad2d((1, 3, 3, 1)), nn.Conv2d(16, 16, 5, groups=16)
        self.conv3, self.bn3 = conv(16, outputs, 1), nn.BatchNorm2d(outputs)
        self.project = None
        if stride > 1 or inputs != outputs:
            self.project = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(same(x, 3, self.stride))))
        out = F.relu6(self.depth(self.pad(F.hardswish(self.conv2(same(out, 2, 1))))))
        out = self.bn3(self.conv3(out))
        if self.project is not None:
            x = self.project(F.max_pool2d(same(x, 3, self.stride), 3, self.stride))
        return F.relu(out + x)


class Twice(nn.Module):
    """Two sums in one module, as in blocks that mix positions and then channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(8, 8), conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x).relu()
        return x + self.second(input=x)


class Loose(nn.Module):
    """Sums in the network's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.fc = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = F.relu(x + self.two(x))
        return self.fc(x.mean((2, 3)))


class Network(nn.Module):
    """A stem, blocks of one kind - the third one of other shape - and a head."""

    def __init__(
        self, kind: Callable[[int, int, int], nn.Module], channels: int = 8, last: int = 1
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, channels), nn.BatchNorm2d(channels), nn.ReLU())
        keeps = kind in (Patchwise, Twice)  # their channels and size
        wider = channels if keeps else 2 * channels
        third = kind(channels, wider, 1 if keeps else 2)
        between = nn.Conv2d(wider, wider, 2, 2) if keeps else nn.Identity()
        self.blocks = nn.Sequential(
            kind(channels, channels, 1), kind(channels, channels, 1), third, between,
            *(kind(wider, wider, 1) for _ in range(last)),
        )  # fmt: skip
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.fc = nn.Linear(wider, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(self.drop(self.pool(x).flatten(1)))


KINDS = (Bottleneck, PreActivation, Inverted, Patchwise, Same)


def make_images(count: int = 6, size: tuple[int, int] = (12, 10), seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.linspace(-2, 2, count)[:, None, None, None]
    return torch.randn(count, 3, *size, generator=draw) + offsets


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """Gives random norms uneven terms and the statistics of what they see; in evaluation mode."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # of one batch, as they are
        net.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def make_plain(kind: Callable[[int, int, int], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return settled(Network(kind), make_images(8))
