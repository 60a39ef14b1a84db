"""What lies in a run's folder, and whether a run may begin, go on, or is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fracskip.config import Recipe, recipe_from_dict
from fracskip.errors import CheckpointError, ConfigError
from fracskip.training.record import read_summary
from fracskip.training.watching import TrainingWatcher

STATE, MODEL, SUMMARY = "state.safetensors", "model.safetensors", "run.json"


def is_done(folder: Path, recipe: Recipe, resume: bool, watcher: TrainingWatcher) -> bool:
    """Whether a run's folder holds all that there will be.

    Raises:
        ConfigError, CheckpointError: if what it holds is not what was asked for.
    """
    has_state, has_model = ((folder / name).exists() for name in (STATE, MODEL))
    exists = has_state or has_model or (folder / SUMMARY).exists()
    if resume and not exists:
        raise nothing_to_resume(folder)
    if exists and not resume:
        raise ConfigError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another name"
        )
    done = read_summary(folder / SUMMARY)
    if done is not None:
        require_same_recipe(done["recipe"], recipe, folder)
    if done is not None and has_model:
        watcher.note(f"the run in {folder} is done: nothing is left to do")
        return True
    if exists and not has_state:
        raise CheckpointError(
            f"{folder} holds a run without its {STATE}, so that it can't go on: put that file "
            "back, or start anew with another name"
        )
    if done is not None:
        watcher.note(f"{folder / MODEL} is missing: it is made anew of the state")
    return False


def nothing_to_resume(folder: Path) -> ConfigError:
    """The error of a folder without a run."""
    return ConfigError(f"{folder} holds no run to resume: start it without --resume")


def require_same_recipe(before: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Where a run computes may change between sittings; what it computes may not.

    Raises:
        ConfigError: if a run's recipe, as JSON values, is another.
    """
    started = recipe_from_dict(before, origin=str(folder))
    if started.model_dump(exclude={"runtime"}) != recipe.model_dump(exclude={"runtime"}):
        raise ConfigError(
            f"the run in {folder} was started with another recipe: resume it with that one, or "
            "start anew with another name"
        )
