"""Classes of which there are many images and few, and what is done about it."""

from __future__ import annotations

import torch
from torch import Tensor

RARE = 0.5  # a class with fewer than this share of the mean class's images is called rare


def rare_classes(counts: dict[str, int]) -> list[str]:
    """The names of classes with less than half of the images that classes have on average.

    >>> rare_classes({"cat": 90, "dog": 80, "wolf": 10})
    ['wolf']
    """
    mean = sum(counts.values()) / max(len(counts), 1)
    return [name for name, count in counts.items() if count < RARE * mean]


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """An epoch's order in which each class that there is comes equally often, but for one image.

    The epoch is as long as the set, so images of large classes are left out of it, and those of
    small classes come again, each as often as the others of its class, but for once.

    Args:
        labels: (N,).
        generator: A CPU generator.

    Returns:
        Indices (N,).
    """
    count = len(labels)
    present = torch.bincount(labels).nonzero()[:, 0]
    present = present[torch.randperm(len(present), generator=generator)]
    chosen = []
    for place, label in enumerate(present.tolist()):
        images = (labels == label).nonzero()[:, 0]
        # The first classes, others in each epoch, share what does not divide.
        quota = count // len(present) + (place < count % len(present))
        rounds = -(-quota // len(images))
        shuffled = [images[torch.randperm(len(images), generator=generator)] for _ in range(rounds)]
        chosen.append(torch.cat(shuffled)[:quota])
    order = torch.cat(chosen)
    return order[torch.randperm(count, generator=generator)]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """What each class weighs in the cross-entropy: the inverse of its frequency, 1 on average.

    Args:
        labels: (N,).
        classes: How many there are.

    Returns:
        float32 (classes,). A class without images weighs as much as one with a single image.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.5000, 1.5000])
    """
    inverse = 1 / torch.bincount(labels.cpu(), minlength=classes).clamp_min(1).float()
    return inverse / inverse.mean()
