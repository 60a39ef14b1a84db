"""Training a converted network on any loader: every option, gates, paths; then its curve.

The stages are those of a recipe (`training.supernet`, `harms`, `joint`), on the caller's batches
and without a run's folder: nothing is written, and a callback may save what it likes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.config import Recipe, recipe_from_dict
from fracskip.devices import pick_device, use_bf16
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation import evaluate
from fracskip.evaluation.source import checked_labels
from fracskip.quant.fused import fusing
from fracskip.training.sequence import STAGES, StageSequence
from fracskip.training.stages import Place, Stage
from fracskip.training.standard import BUDGET, EPOCHS, LOOKS, LR, VALIDATION, Budget, stages
from fracskip.training.state import Totals

Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Held:
    """Validation images in memory, as the network takes them.

    Attributes:
        images: Normalised float32 (N, C, H, W).
        labels: (N,).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int = 250) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Images and labels, so many at a time."""
        return [
            (self.images[start : start + size], self.labels[start : start + size])
            for start in range(0, len(self), size)
        ]


class LoaderBatches:
    """A loader's batches as stages ask for them: in order, from the first, for each purpose.

    Args:
        loader: Of normalised images (B, C, H, W) and labels (B,), with a length.
        device: Where steps run.

    Raises:
        ConfigError: if it has no length.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        if not isinstance(loader, Sized) or not len(loader):
            raise ConfigError(
                "fit needs to know how many batches an epoch has: give a loader with a length of 1 "
                "at least, such as a DataLoader or a list of batches"
            )
        self._loader, self._device = loader, device
        self._place: tuple[str, int, int] | None = None
        self.steps = len(loader)

    def get(self, stage: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,); steps of an epoch are asked for in order."""
        if step == 0:
            self._batches = iter(self._loader)
        else:
            assert self._place == (stage, epoch, step - 1), "batches come in order"
        self._place = (stage, epoch, step)
        try:
            images, labels = next(self._batches)
        except StopIteration:
            raise DataError(
                f"the loader gave {step} batches and said that it has {self.steps}: a length must "
                "be that of every pass"
            ) from None
        return images.to(self._device, torch.float32), torch.as_tensor(labels).to(self._device)


def fit(
    net: DynamicNetwork,
    train: Loader,
    validation: Loader,
    budget: Budget = BUDGET,
    *,
    epochs: tuple[int, int, int] = EPOCHS,
    looks: Literal[1, 2] = LOOKS,
    lr: float = LR,
    seed: int = 0,
    validation_images: int = VALIDATION,
    recipe: Recipe | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains a converted network: all options' weights, gates, the weights along the gates' paths.

    The network learns from labels and from itself as it was (distillation), so convert a trained
    one. Afterwards its costs are calibrated on the validation images: with two budgets it serves
    every one between them, with one that one alone.

    Args:
        net: From `convert`, with gates that say harm (its default). It is trained where the
            device is, and left there, in evaluation mode.
        train: Batches of normalised images (B, C, H, W), varied as you like, and labels (B,).
        validation: Likewise, not varied; the weights should not have learned from them.
        budget: Computation share to be met, or the smallest and the largest.
        epochs: Of the three stages; the first should give each executed option a few.
        looks: 2 lets the network look again where a first look leaves it unsure (two budgets).
        lr: Highest learning rate of the weights; 3e-3 suits batches of 128.
        seed: All draws but the loaders' follow from it.
        validation_images: At most so many are kept in memory.
        recipe: The whole of what is done, in place of budget, epochs, looks, lr and seed.
        on_epoch: Called after each epoch with its figures; 'stage' and 'epoch' say which.

    Returns:
        'epochs' (what `on_epoch` was given), 'curve', 'cascade' and 'lean'.

    Raises:
        ConfigError: if the network, the budget or the loaders do not fit.
        DataError: if labels do not.
    """
    _check(net)
    device = pick_device("auto" if recipe is None else recipe.runtime.device)
    batches = LoaderBatches(train, device)
    held = hold(validation, validation_images, len(net.spec.class_names))
    size = len(batches.get("size", 0, 0)[1])
    recipe = recipe or make_recipe(net, budget, epochs, looks, lr, seed, size)
    net.spec = net.spec.model_copy(
        update={"target": recipe.joint.target, "lean": 0.0, "curve": (), "cascade": ()}
    )
    bf16 = use_bf16(recipe.runtime.amp, device)
    sequence = StageSequence(recipe, net.spec, batches, held, device, bf16)
    history: list[dict[str, Any]] = []
    with fusing(recipe.runtime.compile):
        stage: Stage = sequence.adopt(net)
        for following in (*STAGES[2:], ""):
            for epoch in range(stage.epochs):
                event = _run_epoch(net, stage, batches, held, epoch)
                history.append(event)
                if on_epoch is not None:
                    on_epoch(event)
            if following:
                stage = sequence.begin(following, stage)
        closing = sequence.close(net)
    net.eval()
    if recipe.joint.budgets and not net.spec.curve:
        warnings.warn(
            "decisions jump past the budgets that were asked for, so that no two of them can be "
            "met: train longer, or ask for a wider range",
            stacklevel=2,
        )
    return {"epochs": history, **closing}


def _check(net: DynamicNetwork) -> None:
    if net.gate is None:
        raise ConfigError("a network with one option has no gates to train: give it two at least")
    if net.spec.gate.output != "harm":
        raise ConfigError(
            f"fit trains gates that say 'harm', this one says a {net.spec.gate.output!r}: convert "
            "with GateConfig(output='harm', ...), or train with a recipe"
        )
    if net.spec.quant.scheme != "modern":
        raise ConfigError("fit needs quant.scheme 'modern': the paper's is trained with a recipe")


def make_recipe(
    net: DynamicNetwork,
    budget: Budget,
    epochs: tuple[int, int, int],
    looks: Literal[1, 2],
    lr: float,
    seed: int,
    batch_size: int,
) -> Recipe:
    """What `fit` does, as a recipe.

    Raises:
        ConfigError: if the budget is no share, or its ends are the wrong way round.
    """
    return recipe_from_dict(
        {
            "name": "fit",
            "seed": seed,
            "batch_size": batch_size,
            "options": net.options.labels,
            "model": net.spec.model,
            "quant": net.spec.quant,
            "gate": net.spec.gate,
            **stages(budget, epochs, looks, lr, trusts=net.spec.gate.block_bias),
        },
        origin="fit",
    )


def hold(loader: Loader, limit: int, classes: int) -> Held:
    """A loader's first images, so many at most, in memory.

    Raises:
        DataError: if there are none, or a label is out of range.
    """
    images, labels, count = [], [], 0
    for batch, answers in loader:
        array = np.asarray(batch, dtype=np.float32)[: limit - count]
        images.append(array)
        labels.append(checked_labels(answers, len(batch), classes)[: limit - count])
        count += len(array)
        if count >= limit:
            break
    if not count:
        raise DataError("the validation loader gave no images: costs are calibrated on them")
    return Held(np.concatenate(images), np.concatenate(labels))


def _run_epoch(
    net: DynamicNetwork, stage: Stage, batches: LoaderBatches, held: Held, epoch: int
) -> dict[str, Any]:
    begin, totals = time.perf_counter(), Totals()
    net.train()
    for step in range(batches.steps):
        done = (epoch * batches.steps + step) / (stage.epochs * batches.steps)
        images, labels = batches.get(stage.name, epoch, step)
        totals.add(stage.step(images, labels, Place(epoch, step, done)), 0.0)
    budget = net.spec.target if net.spec.curve or net.spec.gate.budget_input else None
    found = evaluate(net, held.batches(), budget=budget, static=False, examples=0, normalised=True)
    keys = ("accuracy", "cp", "bitops_ratio", "option_share", "decision_entropy_bits")
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        **totals.means(),
        "seconds": time.perf_counter() - begin,
        "validation": {key: found[key] for key in keys},
    }
