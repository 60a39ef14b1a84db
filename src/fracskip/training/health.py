"""What a training's own figures say of it: that it diverged, or is no better than chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fracskip.config import Recipe
from fracskip.errors import DivergedError

ABOVE_CHANCE = 1.5  # times the loss of chance: a first epoch's mean may lie a little above it
CAUSES = "the learning rate is too high, the labels are shuffled, or the weights were not loaded"
CAUSES_UNTRAINED = (
    "its weights were not loaded, labels number the classes in another order, or images are not "
    "normalised as in its training"
)


def rate_of(recipe: Recipe, stage: str) -> str:
    """A stage's highest learning rate, and the key by which a recipe names it."""
    table = getattr(recipe, stage)
    if stage == "gates":
        return f"gates.lr is {table.lr:g}"
    named = "" if stage == "backbone" else ", the argument lr of fit"
    return f"{stage}.optim.lr is {table.optim.lr:g}{named}"


def require_finite_loss(loss: float, recipe: Recipe, stage: str, epoch: int, step: int) -> None:
    """Stops a training whose loss is no number any more.

    Args:
        loss: Of the step that is done.
        recipe: The run.
        stage: Its name.
        epoch: From 0.
        step: From 0.

    Raises:
        DivergedError: naming stage, epoch and step.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in stage {stage}, epoch {epoch + 1}, step {step + 1}: lower "
            f"the learning rate ({rate_of(recipe, stage)})"
        )


def require_finite_weights(net: nn.Module, recipe: Recipe, stage: str, epoch: int) -> None:
    """Stops a training whose weights or statistics are no numbers any more, before they are kept.

    Raises:
        DivergedError: naming the first of them, stage and epoch.
    """
    for name, value in net.state_dict().items():
        # A range that no image has moved yet is NaN by design.
        if not value.is_floating_point() or name.endswith("activation_range"):
            continue
        if not bool(value.isfinite().all()):
            raise DivergedError(
                f"{name} became NaN or infinite in stage {stage}, epoch {epoch + 1}: lower the "
                f"learning rate ({rate_of(recipe, stage)})"
            )


def loss_of_chance(recipe: Recipe, stage: str, classes: int) -> float | None:
    """The loss of a network that finds all classes equally probable, at most.

    Cross-entropy is then ln N, and so is the divergence from a teacher that is always certain,
    which counts times the square of its temperature.

    Args:
        recipe: The run.
        stage: Its name.
        classes: N.

    Returns:
        None for a stage whose loss is something else, or has a price of computation in it.
    """
    if stage == "gates" or (stage == "joint" and recipe.joint.allocation != "batch"):
        return None
    config = getattr(recipe, stage)
    taught, temperature = float(config.distillation), float(config.distillation_temperature)
    return math.log(classes) * (1 + taught * (temperature * temperature - 1))


def loss_warning(
    recipe: Recipe, stage: str, epoch: int, loss: float | None, classes: int
) -> str | None:
    """What to say of an epoch whose mean loss is clearly above that of chance; None: nothing.

    Args:
        recipe: The run.
        stage: Its name.
        epoch: From 0.
        loss: Mean over the epoch's images.
        classes: How many there are.
    """
    chance = loss_of_chance(recipe, stage, classes)
    if chance is None or loss is None or loss <= ABOVE_CHANCE * chance:
        return None
    return (
        f"stage {stage}, epoch {epoch + 1}: the loss of {loss:.3g} is above the {chance:.3g} of "
        f"chance with {classes} classes; probably {CAUSES} ({rate_of(recipe, stage)})"
    )


def accuracy_warning(
    what: str, accuracy: float, labels: NDArray[np.int64], causes: str = CAUSES
) -> str | None:
    """What to say of a plain network that is no better than chance on validation images.

    Chance is to name the most frequent class always; one standard error above it is still chance.

    Args:
        what: The network, in words.
        accuracy: On the images.
        labels: Of the images, (N,).
        causes: The likely ones, in words.
    """
    chance = float(np.bincount(labels).max()) / len(labels)
    error = math.sqrt(chance * (1 - chance) / len(labels))
    if chance == 1 or accuracy > chance + error:
        return None
    return (
        f"{what} is right for {accuracy:.1%} of {len(labels)} validation images, no better than "
        f"chance ({chance:.1%}): all that follows builds on it; probably {causes}"
    )
