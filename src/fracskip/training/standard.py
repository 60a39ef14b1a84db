"""The training that `fit` does and that the command line does without a recipe, as a recipe.

Its figures are here once; `fit` takes them on any loader, `standard_recipe` on a data set by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fracskip.config import FOLDER_PREFIX, QuantConfig, Recipe, override, recipe_from_dict
from fracskip.config.stages import BackboneStage
from fracskip.data import class_counts
from fracskip.dynamic.convert import GATE
from fracskip.errors import ConfigError
from fracskip.training.objective import spread

BUDGET = (0.005, 0.06)
EPOCHS = (25, 3, 6)  # of all options' weights, of the gates, in the gates' allocations
MEMBERS: Literal[1, 2] = 2
LR = 3e-3
VALIDATION = 2000  # images at most
BUDGETS = 11  # costs for which the multiplier is searched, between the smallest and the largest
OPTIONS = "low"
# A backbone from scratch, if there is one: a few hundred images are a few dozen steps, in which an
# unclipped gradient throws a fresh network to losses that it does not come back from.
SCRATCH = BackboneStage().optim.model_copy(update={"clip_norm": 1.0})
QUANT = QuantConfig(weights="per_option")

# Of photographs:
SIZE = 128
MARGIN = 8 / 7  # what is seen over what is cut out, as 256 to 224
HELD_SHARE = 0.1  # of the training images, for validation

Budget = float | tuple[float, float]


def stages(
    budget: Budget = BUDGET,
    epochs: tuple[int, int, int] = EPOCHS,
    members: Literal[1, 2] = MEMBERS,
    lr: float = LR,
    shrinks: bool = True,
) -> dict[str, Any]:
    """A recipe's tables `supernet`, `gates` and `joint`.

    Args:
        budget: Computation share to be met, or the smallest and the largest.
        epochs: Of the three stages.
        members: 2 allows for a cascade of two (two budgets).
        lr: Highest learning rate of the weights.
        shrinks: Whether it is chosen how far head outputs are shrunk; needs `gate.block_bias`.

    Raises:
        ConfigError: if the budget is no share, or its ends are the wrong way round.
    """
    low, high = (budget, budget) if isinstance(budget, float | int) else budget
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"budget {budget!r} is out of range: give a share in (0, 1], or the smallest and the "
            "largest"
        )
    many = low < high
    budgets = tuple(spread(low, high, at / (BUDGETS - 1)) for at in range(BUDGETS))
    taught: dict[str, Any] = {"distillation": 0.8, "distillation_temperature": 4.0}
    optim = {"lr": lr, "warmup": 0.05, "clip_norm": 1.0}
    weights, gates, allocations = epochs
    shares = (1.0, 0.9, 0.75, 0.5, 0.0) if shrinks else ()
    return {
        "supernet": {"epochs": weights, "skip_rate": 0.2, "uniform_rate": 0.5, "low_focus": 1.3,
                     "optim": optim, **taught},
        "gates": {"epochs": gates, "label": "sensitivity", "lr": 2e-3, "shrinkage": shares,
                  "block_shrinkage": shares[1:]},
        "joint": {"epochs": allocations, "allocation": "batch", "gate_lr": 0, "uniform_rate": 0.25,
                  "aim": "budgets" if many else "target", "budgets": budgets if many else (),
                  "target": spread(low, high, 0.5), "members": members if many else 1,
                  "optim": optim, **taught},
    }  # fmt: skip


def scaled_epochs(weights: int) -> tuple[int, int, int]:
    """Epochs of the three stages in their usual proportion, by the first one's.

    >>> scaled_epochs(25), scaled_epochs(10), scaled_epochs(1)
    ((25, 3, 6), (10, 1, 2), (1, 1, 1))
    """
    _, gates, allocations = (max(1, round(epochs * weights / EPOCHS[0])) for epochs in EPOCHS)
    return weights, gates, allocations


def standard_recipe(
    model: str,
    data: str,
    *,
    weights: str | Path | None = None,
    options: str | Sequence[str] = OPTIONS,
    budget: Budget = BUDGET,
    epochs: tuple[int, int, int] = EPOCHS,
    size: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe by which a trained network by name becomes dynamic, on a data set by name.

    Args:
        model: Such as 'torchvision/resnet18' or 'resnet38'.
        data: Such as 'folder:PATH' or 'cifar10'. Of a folder's training images a tenth, 2,000 at
            most, is held out, and the others are cropped at random sizes.
        weights: Of the plain network, a safetensors file; None if it is to be trained first.
        options: A preset's name or the options.
        budget: Computation share to be met, or the smallest and the largest.
        epochs: Of all options' weights, of the gates, in the gates' allocations.
        size: Of the square images in pixels; by default 128 for a folder and 32 for others.
        overrides: `key=value`, for all else that a recipe can say.

    Raises:
        ConfigError: if something does not fit, or there is nothing to begin with.
        DataError: if the folder holds no classes.
    """
    tree = {
        "name": _run_name(model, data, options),
        "options": options,
        "data": {"name": data, **_images(data, size)},
        "model": {"name": model},
        "quant": QUANT.model_dump(),
        "gate": GATE.model_dump(),
        # From wherever the recipe is read.
        "backbone": {
            "load": str(Path(weights).expanduser().absolute()) if weights else "",
            "optim": SCRATCH.model_dump(),
        },
        **stages(budget, epochs),
    }
    recipe = recipe_from_dict(override(tree, overrides), origin="command line")
    if not (recipe.backbone.load or recipe.backbone.epochs or recipe.start):
        raise ConfigError(
            "the network has no weights: give --weights FILE.safetensors, or train it from scratch "
            "with --set backbone.epochs=30"
        )
    return recipe


def _run_name(model: str, data: str, options: str | Sequence[str]) -> str:
    """Such as low_resnet18_photos."""
    kind = options if isinstance(options, str) else "-".join(map(str, options))
    source = Path(data.removeprefix(FOLDER_PREFIX)).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{kind}_{model.rpartition('/')[2]}_{source}")


def _images(data: str, size: int | None) -> dict[str, Any]:
    """How images are held and varied, in `data`."""
    if not data.startswith(FOLDER_PREFIX):
        return {"image": {"size": (size, size)}} if size else {}
    count = sum(class_counts(Path(data.removeprefix(FOLDER_PREFIX))).values())
    size = size or SIZE
    return {
        "image": {"size": (size, size), "resize": round(size * MARGIN)},
        "augment": "resized",
        "validation": max(1, min(VALIDATION, int(count * HELD_SHARE))),
    }
