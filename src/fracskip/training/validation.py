"""Validation images: predictions at operating points, the loss of decisions, and accuracy."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import ImageConfig
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation.network import NetworkPredictor
from fracskip.evaluation.predictions import predict_with
from fracskip.evaluation.source import sliced
from fracskip.operating import OperatingPoints, Prediction
from fracskip.training.batches import Labelled

BATCH = 250


def predicted(
    net: DynamicNetwork, points: OperatingPoints, images: NDArray[Any], budget: float | None = None
) -> Prediction[NDArray[Any]]:
    """What a network answers at operating points other than its own.

    Args:
        net: The network.
        points: How it is operated.
        images: Pixels, uint8 (N, H, W, C).
        budget: Computation share, if the network takes one.
    """
    predictor = NetworkPredictor(net, points)
    return predict_with(predictor, sliced(images, BATCH), None, budget, None)


class ValidationLoss:
    """The loss of validation images, ready for any number of allocations.

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
    def __call__(self, decisions: Tensor) -> float:
        """The mean cross-entropy of all images that execute these decisions, (N, L)."""
        taken = in_batches(decisions.to(self._labels.device))
        logits = [
            self._net(batch, decisions=each).logits
            for batch, each in zip(self.batches, taken, strict=True)
        ]
        return float(F.cross_entropy(torch.cat(logits).float(), self._labels))


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
