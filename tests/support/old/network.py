"""What the checkpoints beside this file hold: a network of three blocks, and the images it saw."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.project = nn.Identity()
        if inputs != outputs:
            self.project = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.project(x)).relu()


class Small(nn.Module):
    """A stem, three blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6), Block(6, 6))
        self.fc = nn.Linear(6, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x).relu()).mean((2, 3)))


def images(count: int = 12) -> Tensor:
    """Normalised images (count, 3, 8, 8)."""
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 8, 8, generator=draw)
        * torch.linspace(0.3, 3, count)[:, None, None, None]
    )
