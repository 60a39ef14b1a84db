"""Training a converted network on any loader: options, gates, allocations; then its curve.

The stages are those of a recipe (`training.supernet`, `sensitivities`, `joint`), on the caller's
batches and without a run's folder: nothing is written, and a callback may save what it likes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

from fracskip.config import Recipe, recipe_from_dict
from fracskip.devices import pick_device, use_bf16
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import ConfigError, DivergedError
from fracskip.evaluation import evaluate
from fracskip.quant.fused import fusing
from fracskip.training.health import (
    CAUSES_UNTRAINED,
    accuracy_warning,
    loss_warning,
    require_finite_loss,
    require_finite_weights,
)
from fracskip.training.loaders import Loader, LoaderBatches, ValidationSet, read_validation
from fracskip.training.sequence import STAGES, StageSequence
from fracskip.training.stages import Stage, StepIndex
from fracskip.training.standard import BUDGET, EPOCHS, LR, MEMBERS, VALIDATION, Budget, stages
from fracskip.training.state import Totals
from fracskip.training.validation import plain_accuracy


def fit(
    net: DynamicNetwork,
    train: Loader,
    validation: Loader,
    budget: Budget = BUDGET,
    *,
    epochs: tuple[int, int, int] = EPOCHS,
    members: Literal[1, 2] = MEMBERS,
    lr: float = LR,
    seed: int = 0,
    validation_images: int = VALIDATION,
    steps: int | None = None,
    normalised: bool = False,
    recipe: Recipe | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains a converted network: options' weights, gates, the weights in the gates' allocations.

    The network learns from labels and from itself as it was (distillation), so convert a trained
    one. Afterwards its costs are calibrated on the validation images: with two budgets it serves
    every one between them, with one that one alone. What decisions do not reach of a budget is
    warned of, and the network's target and budgets are those that it does reach.

    Args:
        net: From `convert`, with gates that give sensitivities (its default). It is trained where
            the device is, and left there, in evaluation mode.
        train: Batches of normalised images (B, C, H, W), varied as you like, or of pixels, uint8
            (B, H, W, C), which are normalised as `net.spec.image` says; and class numbers (B,) or
            one-hot labels. Pairs, or dictionaries such as {'image', 'label'}.
        validation: Likewise, not varied; the weights should not have learned from them.
        budget: Computation share to be met, or the smallest and the largest.
        epochs: Of the three stages; the first should give each executed option a few.
        members: 2 allows for a cascade: what a cheap first member leaves uncertain is escalated to
            a second one (two budgets).
        lr: Highest learning rate of the weights; 3e-3 suits batches of 128.
        seed: All draws but the loaders' follow from it.
        validation_images: At most so many are kept in memory.
        steps: Batches an epoch; by default the training loader's length.
        normalised: Float images are normalised, whatever their range is.
        recipe: The whole of what is done, in place of budget, epochs, members, lr and seed.
        on_epoch: Called after each epoch with its figures; 'stage' and 'epoch' say which.

    Returns:
        'epochs' (what `on_epoch` was given), and what ends the training (see `training.finalize`):
        'operating_points', 'cascade_gain' and 'norms'.

    Raises:
        ConfigError: if the network, the budget or the loaders do not fit.
        DataError: if a batch does not; it is refused before the weights learn from it.
        DivergedError: if loss or weights become NaN or infinite; the network is then as it was at
            the epoch's beginning.
    """
    _check(net)
    device = pick_device("auto" if recipe is None else recipe.runtime.device)
    batches = LoaderBatches(train, device, net.spec, steps, normalised)
    held = read_validation(validation, validation_images, net.spec, normalised)
    size = len(batches.get("size", 0, 0)[1])
    recipe = recipe or make_recipe(net, budget, epochs, members, lr, seed, size)
    bf16 = use_bf16(recipe.runtime.amp, device)
    sequence = StageSequence(recipe, net.spec, batches, held, device, bf16)
    history: list[dict[str, Any]] = []
    try:
        with fusing(recipe.runtime.compile):
            stage: Stage = sequence.adopt(net)
            plain = plain_accuracy(net.plain().to(device), held, net.spec.image)
            what = "the network that was converted"
            _warn(accuracy_warning(what, plain, held.labels, CAUSES_UNTRAINED))
            for following in (*STAGES[2:], ""):
                doubted = False
                for epoch in range(stage.epochs):
                    event = _run_epoch(net, stage, batches, held, recipe, epoch)
                    history.append(event)
                    if on_epoch is not None:
                        on_epoch(event)
                    if not doubted:
                        classes = len(net.spec.class_names)
                        text = loss_warning(recipe, stage.name, epoch, event["loss"], classes)
                        doubted = _warn(text)
                if following:
                    stage = sequence.begin(following, stage)
            found = sequence.finish(net)
    finally:
        net.eval()
    for text in sequence.shortfalls:
        _warn(text)
    return {"epochs": history, **found}


def _warn(text: str | None) -> bool:
    """Warns fit's caller, if there is anything to say."""
    if text is not None:
        warnings.warn(text, stacklevel=3)
    return text is not None


def _check(net: DynamicNetwork) -> None:
    if net.gate is None:
        raise ConfigError("a network with one option has no gates to train: give it two at least")
    if net.spec.gate.output != "sensitivity":
        raise ConfigError(
            f"fit trains gates whose output is 'sensitivity', this one's is a "
            f"{net.spec.gate.output!r}: convert with GateConfig(output='sensitivity', ...), or "
            "train with a recipe"
        )
    if net.spec.quant.scheme != "lsq":
        raise ConfigError("fit needs quant.scheme 'lsq': the paper's is trained with a recipe")


def make_recipe(
    net: DynamicNetwork,
    budget: Budget,
    epochs: tuple[int, int, int],
    members: Literal[1, 2],
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
            **stages(budget, epochs, members, lr, shrinks=net.spec.gate.block_bias),
        },
        origin="fit",
    )


def _run_epoch(
    net: DynamicNetwork,
    stage: Stage,
    batches: LoaderBatches,
    held: ValidationSet,
    recipe: Recipe,
    epoch: int,
) -> dict[str, Any]:
    begin, totals = time.perf_counter(), Totals()
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    try:
        for step in range(batches.steps):
            done = (epoch * batches.steps + step) / (stage.epochs * batches.steps)
            images, labels = batches.get(stage.name, epoch, step)
            result = stage.step(images, labels, StepIndex(epoch, step, done))
            require_finite_loss(result.loss, recipe, stage.name, epoch, step)
            totals.add(result, 0.0)
        require_finite_weights(net, recipe, stage.name, epoch)
    except DivergedError as error:
        net.load_state_dict(kept)
        raise DivergedError(f"{error}; the network is as it was before this epoch") from None
    budget = None if net.budgets is None else net.operating_points.target
    found = evaluate(net, held.batches(), budget=budget, static=False, examples=0, normalised=True)
    keys = ("accuracy", "cp", "bitops_ratio", "option_share", "decision_entropy_bits")
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        **totals.means(stage.measure),
        "seconds": time.perf_counter() - begin,
        "validation": {key: found[key] for key in keys},
    }
