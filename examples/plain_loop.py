"""Dynamic skipping in a training loop of your own, in plain torch.

    python examples/plain_loop.py                    # random images, two minutes
    python examples/plain_loop.py --images photos    # photos/train/CLASS/*, photos/val/CLASS/*

Three things of fracskip are used, each of which stands alone: `convert` makes a network dynamic,
`net(images, exploration=...)` executes each image's own path and gives the gates a gradient, and
`CostPrice` turns what the paths cost into a term of the loss.

Needs torchvision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sized
from typing import Protocol

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

import fracskip
from fracskip.dynamic import Exploration
from fracskip.training.objective import CostPrice

SIDE = 64
NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Loader(Sized, Iterable[tuple[Tensor, Tensor]], Protocol):
    """Batches of normalised images (B, C, H, W) and labels (B,)."""


# -- nothing of fracskip: images and a plain network -----------------------------------------------


def random_images(count: int, seed: int, classes: int = 4) -> TensorDataset:
    """Noise, on which each class has a bright bar in a place of its own."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=draw)
    images = torch.randn(count, 3, SIDE, SIDE, generator=draw)
    wide = SIDE // classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, label * wide : (label + 1) * wide] += 1
    return TensorDataset(images, labels)


def folder_images(folder: str, split: str) -> Dataset[tuple[Tensor, int]]:
    """A folder of images for each class."""
    crop = transforms.RandomResizedCrop(SIDE) if split == "train" else transforms.CenterCrop(SIDE)
    steps = [transforms.Resize(SIDE), crop, transforms.ToTensor(), NORMALISE]
    return torchvision.datasets.ImageFolder(f"{folder}/{split}", transforms.Compose(steps))


def make_loaders(folder: str | None, batch: int) -> tuple[Loader, Loader, int]:
    """For training and for validation; and how many classes there are."""
    if folder is None:
        train, val, classes = random_images(512, seed=0), random_images(128, seed=1), 4
    else:
        train, val = folder_images(folder, "train"), folder_images(folder, "val")
        classes = len(train.classes)
    return DataLoader(train, batch, shuffle=True, drop_last=True), DataLoader(val, batch), classes


def plain_network(train: Loader, classes: int) -> nn.Module:
    """Stands for a network that you have trained."""
    net = torchvision.models.resnet18(num_classes=classes)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for images, labels in train:
        optimiser.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimiser.step()
    return net.eval()


# -- fracskip --------------------------------------------------------------------------------------


def make_dynamic(plain: nn.Module, images: Tensor) -> fracskip.DynamicNetwork:
    """Blocks that can be skipped, executed at 4 bits or at 8; ranges follow from the images."""
    return fracskip.convert(
        plain,
        ["skip", 4, 8],
        gate=fracskip.GateConfig(standardise=True),
        example_input=images[:1],
        calibration=[images],
    )


def train_dynamic(
    net: fracskip.DynamicNetwork,
    train: Loader,
    target: float,
    epochs: int,
    lr: float = 1e-4,
    gate_lr: float = 3e-3,
    rate: float = 0.03,
) -> list[float]:
    """Trains weights and gates together, towards a mean cost.

    Args:
        net: The network.
        train: Training images.
        target: Share of the gated blocks' computation at 32 bits that images shall cost on average.
        epochs: Passes over them.
        lr: Of the weights.
        gate_lr: Of the gates.
        rate: How fast the price follows the error.

    Returns:
        The mean cost of each step.
    """
    price = CostPrice(rate)  # rises while the mean cost is above the target
    weights = [value for _, value in net.named_weights()]
    optimiser = torch.optim.Adam(
        [{"params": weights, "lr": lr}, {"params": net.gate.parameters(), "lr": gate_lr}]
    )
    draw = torch.Generator().manual_seed(0)
    steps = epochs * len(train)
    costs: list[float] = []
    net.train()  # BatchNorm statistics stand still: those of one option are not another's
    for _ in range(epochs):
        for images, labels in train:
            # Gates explore: noise on what they say, less and less of it.
            out = net(images, exploration=Exploration(draw, noise=1 - len(costs) / steps))
            # `out.cost` has the gates' gradient: any objective can be made of it.
            loss = cross_entropy(out.logits, labels) + price.penalty(out.cost, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            costs.append(out.cost.mean().item())
    # Statistics of the paths that are taken now.
    net.reestimate([images for images, _ in train])
    net.eval()
    return costs


def main() -> None:
    """Trains, then says what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--target", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, val, classes = make_loaders(options.images, options.batch)
    images, _ = next(iter(train))
    net = make_dynamic(plain_network(train, classes), images)
    costs = train_dynamic(net, train, options.target, options.epochs)
    print(f"cost: {costs[0]:.2%} in the first step, {costs[-1]:.2%} in the last")

    record = fracskip.evaluate(net, val)
    print(f"validation: accuracy {record['accuracy']:.1%} at a cost of {record['cp']:.2%}")
    print("options taken:", {key: f"{share:.0%}" for key, share in record["option_share"].items()})


if __name__ == "__main__":
    main()
