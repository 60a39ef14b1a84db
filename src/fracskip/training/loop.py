"""The loop: stages in order, a checkpoint every epoch, a record of it all, and exact resumption.

A run is a folder:

    recipe.json         what it does, overrides included
    record.jsonl        one line per event
    run.lock            who trains in it, while somebody does
    state.safetensors   where it stands: network, optimisers, place, random state
    model.safetensors   the trained network, once it is done
    run.json            the whole record in one file, once it is done

Every random draw follows from the seed and its place (`training.randomness`), so a run that is
killed at any moment and resumed ends with the same weights, bit for bit, as one never interrupted
- on the same machine with the same number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fracskip import checkpoint, legacy
from fracskip.config import FOLDER_PREFIX, ImageConfig, Recipe
from fracskip.data import ImageSet, central, class_counts, load_split, split_validation
from fracskip.devices import describe, pick_device, use_bf16
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import DataError, DivergedError
from fracskip.evaluation import evaluate
from fracskip.files import write_atomically
from fracskip.machine import versions
from fracskip.quant.fused import fusing
from fracskip.training.balance import class_weights, rare_classes
from fracskip.training.batches import Batches
from fracskip.training.folder import (
    MODEL,
    STATE,
    SUMMARY,
    is_done,
    nothing_to_resume,
    require_same_recipe,
)
from fracskip.training.health import (
    CAUSES,
    CAUSES_UNTRAINED,
    accuracy_warning,
    loss_warning,
    require_finite_loss,
    require_finite_weights,
)
from fracskip.training.lock import locked
from fracskip.training.record import Record
from fracskip.training.sequence import STAGES, StageSequence
from fracskip.training.stages import Stage, StepIndex
from fracskip.training.state import Position, Totals, optimiser_tensors
from fracskip.training.validation import plain_accuracy
from fracskip.training.watching import (
    SILENT,
    RunInterrupted,
    TrainingWatcher,
    stops_on_interrupt,
)

STATE_SCHEMA = "fracskip.training-state"
MAX_NAMED = 5
"""How many files a note names; the record names all."""


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, watcher: TrainingWatcher) -> None:
        self.recipe = recipe
        self.folder = folder
        self.watcher = watcher
        self.record = Record(folder)
        self.device = pick_device(recipe.runtime.device)
        self.bf16 = use_bf16(recipe.runtime.amp, self.device)
        if recipe.data.name.startswith(FOLDER_PREFIX):
            # The test set is read when all is trained; that it is missing is an error now.
            class_counts(Path(recipe.data.name.removeprefix(FOLDER_PREFIX)), "test")
        everything = self._load("train", recipe.data.image.view)
        train, held = split_validation(everything, recipe.data.validation, recipe.data.split_seed)
        self.validation = central(held, recipe.data.image)
        if recipe.data.train_limit:
            train = train.subset(range(min(recipe.data.train_limit, len(train))))
        self.train = train
        self.batches = Batches(train, recipe.data, recipe.batch_size, recipe.seed, self.device)
        self.stop = False
        self.spec = recipe.model_spec(train.class_names, train.name)
        weights = None
        if recipe.data.balance == "loss":
            weights = class_weights(torch.from_numpy(train.labels), len(train.class_names))
        self.sequence = StageSequence(
            recipe, self.spec, self.batches, self.validation, self.device, self.bf16, weights
        )

    def ask_to_stop(self) -> None:
        """Ends the run after the step that it is in."""
        self.stop = True

    def _load(self, split: Literal["train", "test"], image: ImageConfig) -> ImageSet:
        data = self.recipe.data
        return load_split(
            data.name,
            split,
            image,
            on_corrupt=data.on_corrupt,
            workers=data.workers,
            progress=self.watcher.loading,
        )

    def _about_the_data(self) -> dict[str, Any]:
        """What the record says of the training images."""
        labels, names = self.train.labels, self.train.class_names
        counts = np.bincount(labels, minlength=len(names)).tolist()
        classes = dict(zip(names, counts, strict=True))
        return {
            "source": self.train.source,
            "train": len(self.train),
            "validation": len(self.validation),
            "classes": classes,
            "rare": rare_classes(classes),
            "skipped": list(self.train.skipped),
        }

    # -- saving ---------------------------------------------------------------------------------

    def save(self, position: Position, stage: Stage) -> None:
        position.stage_state = stage.state()
        if isinstance(stage.net, DynamicNetwork):
            position.operating_points = stage.net.operating_points.model_dump(mode="json")
        tensors = {f"net.{name}": value for name, value in stage.net.state_dict().items()}
        if self.sequence.teacher is not None:
            for name, value in self.sequence.teacher.state_dict().items():
                tensors[f"teacher.{name}"] = value
        for index, optimiser in enumerate(stage.optimisers):
            for name, value in optimiser_tensors(optimiser).items():
                tensors[f"optimiser{index}.{name}"] = value
        tensors["random.cpu"] = torch.get_rng_state()
        meta = {"position": asdict(position), "recipe": self.recipe.model_dump(mode="json")}
        checkpoint.write_package(self.folder / STATE, STATE_SCHEMA, meta, tensors)

    # -- running --------------------------------------------------------------------------------

    def start(self) -> tuple[Position, Stage]:
        text = self.recipe.model_dump_json(indent=1)
        write_atomically(self.folder / "recipe.json", text.encode())
        first = self.sequence.first
        position, stage = Position(stage=first), self.sequence.begin(first, None)
        event = self._start_event()
        for note in event["notes"]:
            self.watcher.note(note)
        self.record.path.unlink(missing_ok=True)
        self.record.append(event)
        self.save(position, stage)
        return position, stage

    def _start_event(self) -> dict[str, Any]:
        data = self._about_the_data()
        return {
            "event": "start",
            "name": self.recipe.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": versions(),
            "device": describe(self.device),
            "backbone_digest": self.sequence.backbone_digest,
            "teacher_digest": self.sequence.teacher_digest,
            "start_digest": self.sequence.start_digest,
            "data": data,
            "notes": [
                *_remarks(data, self.recipe.data.balance),
                *self.train.notes,
                *self.sequence.notes,
            ],
        }

    def resume(self) -> tuple[Position, Stage]:
        path = self.folder / STATE
        package = checkpoint.read_package(path, STATE_SCHEMA)
        meta = legacy.training_state(package.meta)
        require_same_recipe(meta["recipe"], self.recipe, self.folder)
        values = dict(meta["position"])
        position = Position(**{**values, "totals": Totals(**values["totals"])})
        stage = self.sequence.restore(position, package.tensors, path)
        before = STAGES[: STAGES.index(position.stage)]
        kept = self.record.rewind(self._start_event(), before, position.stage, position.epoch)
        if kept < position.recorded:
            self._note(
                position,
                f"{self.record.path} was damaged or lost: it has {kept} of the "
                f"{position.recorded} epochs that are done; the network is whole",
            )
        return position, stage

    def _note(self, position: Position, text: str | None) -> None:
        """Says what went wrong, now and in the record."""
        if text is not None:
            self.watcher.note(text)
            position.notes.append(text)

    def execute(self, position: Position, stage: Stage) -> Stage:
        """Runs what is left of the stages; returns the last one."""
        while True:
            self._run_stage(position, stage)
            following = STAGES.index(position.stage) + 1
            if following == len(STAGES):
                return stage
            if position.stage == "backbone":
                self._note(position, self._doubts(stage))
            stage = self.sequence.begin(STAGES[following], stage)
            position.stage, position.epoch, position.step = stage.name, 0, 0
            self.save(position, stage)

    def _doubts(self, stage: Stage) -> str | None:
        """A warning of a backbone that is no better than chance."""
        accuracy = plain_accuracy(stage.net, self.validation, self.spec.image)
        causes = CAUSES if self.recipe.backbone.epochs else CAUSES_UNTRAINED
        return accuracy_warning("the backbone", accuracy, self.validation.labels, causes)

    def _run_stage(self, position: Position, stage: Stage) -> None:
        steps = self.batches.steps
        if stage.epochs:
            self.watcher.stage(stage.name, stage.epochs, steps)
        stage.net.train()
        while position.epoch < stage.epochs:
            try:
                self._run_epoch(position, stage, steps)
            except DivergedError as error:
                raise DivergedError(
                    f"{error} and start anew under another name; {self.folder} holds the state of "
                    "before"
                ) from None
            means = position.totals.means(stage.measure)
            if not any(note.startswith(f"stage {stage.name},") for note in position.notes):
                classes = len(self.spec.class_names)
                self._note(
                    position,
                    loss_warning(self.recipe, stage.name, position.epoch, means["loss"], classes),
                )
            event = {
                "event": "epoch",
                "stage": stage.name,
                "epoch": position.epoch + 1,
                "step": (position.epoch + 1) * steps,
                **means,
                "lr": stage.lr((position.epoch + 1) / stage.epochs - 1e-9),
                **stage.state(),
                "seconds": position.totals.seconds,
                "validation": self._validate(stage),
            }
            position.recorded += 1
            position.epoch, position.step, position.totals = position.epoch + 1, 0, Totals()
            self.record.append(event)
            self.save(position, stage)
            self.watcher.epoch(event)

    def _run_epoch(self, position: Position, stage: Stage, steps: int) -> None:
        every = self.recipe.runtime.checkpoint_steps
        while position.step < steps:
            begin = time.perf_counter()
            done = (position.epoch * steps + position.step) / (stage.epochs * steps)
            at = StepIndex(position.epoch, position.step, done)
            images, labels = self.batches.get(stage.name, at.epoch, at.step)
            result = stage.step(images, labels, at)
            require_finite_loss(result.loss, self.recipe, stage.name, at.epoch, at.step)
            seconds = time.perf_counter() - begin
            position.totals.add(result, seconds)
            position.seconds += seconds
            position.step += 1
            self.watcher.step(at, position.totals, stage.lr(done))
            due = every and position.step % every == 0
            if self.stop or due or position.step == steps:
                require_finite_weights(stage.net, self.recipe, stage.name, at.epoch)
            if self.stop:
                self.save(position, stage)
                raise RunInterrupted(str(self.folder))
            if due and position.step < steps:
                self.save(position, stage)

    def _validate(self, stage: Stage) -> dict[str, Any]:
        data = self.validation
        if isinstance(stage.net, DynamicNetwork):
            found = evaluate(stage.net, data, static=False, examples=0)
            keys = ("accuracy", "cp", "bitops_ratio", "option_share", "decision_entropy_bits")
            result = {key: found[key] for key in keys}
        else:
            accuracy = plain_accuracy(stage.net, data, self.spec.image)
            result = {"accuracy": accuracy, "cp": None}
        stage.net.train()
        return result

    def finish(self, position: Position, stage: Stage) -> Path:
        """Saves the network, reads the test set - once - and closes the record."""
        net = stage.net
        assert isinstance(net, DynamicNetwork)
        found = self.sequence.finish(net)
        for text in self.sequence.shortfalls:
            self._note(position, text)
        path = self.folder / MODEL
        notes = {"recipe": self.recipe.name, "seed": self.recipe.seed, "versions": versions()}
        net.digest = checkpoint.save(net, path, notes)
        tested, skipped = self._test(net, position)
        self.record.append(
            {
                "event": "end",
                "test": tested,
                "skipped": skipped,
                "notes": position.notes,
                **found,
                "seconds": position.seconds,
            }
        )
        self.record.write_summary(self.folder / SUMMARY)
        return path

    def _test(
        self, net: DynamicNetwork, position: Position
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The test set's evaluation, and its files that were left out; None if it can't be read."""
        try:
            test = self._load("test", self.recipe.data.image)
            examples = self.recipe.data.examples
            found = evaluate(net, test, name=self.recipe.name, examples=examples)
        except DataError as error:
            self._note(
                position,
                f"the network is trained and saved, and was not tested: {error}; then use "
                "fracskip eval",
            )
            return None, []
        for note in ([_skipped(test.skipped)] if test.skipped else []) + list(test.notes):
            self.watcher.note(note)
        return found, list(test.skipped)


def _remarks(data: dict[str, Any], balance: str) -> list[str]:
    """What of the training images may surprise."""
    remarks = [_skipped(data["skipped"])] if data["skipped"] else []
    if data["rare"] and balance == "none":
        remarks.append(
            f'there are few images of {", ".join(data["rare"])}: data.balance = "sample" draws '
            "each class equally often"
        )
    return remarks


def _skipped(files: Sequence[str]) -> str:
    more = f" and {len(files) - MAX_NAMED} more" if len(files) > MAX_NAMED else ""
    named = ", ".join(files[:MAX_NAMED]) + more
    return f"images left out because they cannot be decoded ({len(files)}): {named}"


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    watcher: TrainingWatcher | None = None,
) -> Path:
    """Runs a recipe.

    Args:
        recipe: What to do.
        folder: The run's folder.
        resume: Go on with the run in the folder; a finished run is left as it is.
        watcher: Who follows the run.

    Returns:
        The path of the trained network's checkpoint.

    Raises:
        ConfigError: if the folder holds a run and `resume` was not asked for, or the other way
            round, or the recipe changed, or another training is at it.
        CheckpointError: if what the folder holds is damaged or incomplete.
        DataError: if the data set is not there.
        DivergedError: if loss or weights become NaN or infinite; the state of before is kept.
        RunInterrupted: after Ctrl-C; the state is saved.
    """
    folder, watcher = Path(folder), watcher or SILENT
    if resume and not folder.exists():
        raise nothing_to_resume(folder)
    with locked(folder):
        for litter in folder.glob(".*.part"):  # of a write that was killed
            litter.unlink()
        if is_done(folder, recipe, resume, watcher):
            return folder / MODEL
        if recipe.runtime.threads:
            torch.set_num_threads(recipe.runtime.threads)
        run = _Run(recipe, folder, watcher)
        with stops_on_interrupt(run.ask_to_stop), fusing(recipe.runtime.compile):
            position, stage = run.resume() if resume else run.start()
            last = run.execute(position, stage)
        return run.finish(position, last)
