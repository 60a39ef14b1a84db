"""What paths through a network are worth: the loss of validation images that take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import ImageConfig
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.training.batches import Labelled

BATCH = 250


class Judge:
    """Validation images, ready for any number of paths.

    Args:
        net: The network; it should evaluate, not train.
        data: Images and labels.
        most: How many of them to use.

    Attributes:
        batches: Normalised images, (B, C, H, W) each.
    """

    def __init__(self, net: DynamicNetwork, data: Labelled, most: int) -> None:
        device = next(net.parameters()).device
        pixels = preprocess(torch.from_numpy(data.images[:most]).to(device), net.spec.image)
        self.batches = in_batches(pixels)
        self._net = net
        self._labels = torch.from_numpy(data.labels[:most]).to(device)

    @torch.no_grad()
    def loss(self, decisions: Tensor) -> float:
        """The mean cross-entropy of all images along their paths, (N, L)."""
        taken = in_batches(decisions.to(self._labels.device))
        answers = [
            self._net(batch, decisions=path).logits
            for batch, path in zip(self.batches, taken, strict=True)
        ]
        return float(F.cross_entropy(torch.cat(answers).float(), self._labels))


@torch.inference_mode()
def plain_accuracy(net: nn.Module, data: Labelled, image: ImageConfig) -> float:
    """The share of images that a plain network classifies rightly; it is left evaluating.

    Args:
        net: The network.
        data: Images and labels.
        image: How pixels are normalised.
    """
    net.eval()
    device = next(net.parameters()).device
    right = 0
    for start in range(0, len(data.images), BATCH):
        pixels = torch.from_numpy(data.images[start : start + BATCH]).to(device)
        predicted = net(preprocess(pixels, image)).argmax(1).cpu().numpy()
        right += int((predicted == data.labels[start : start + BATCH]).sum())
    return right / len(data.images)


def in_batches(values: Tensor) -> list[Tensor]:
    """So many at a time as the network takes."""
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
