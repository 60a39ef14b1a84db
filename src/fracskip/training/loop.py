"""The loop: stages in order, a checkpoint every epoch, a record of it all, and exact resumption.

A run is a folder:

    recipe.json         what it does, overrides included
    record.jsonl        one line per event
    state.safetensors   where it stands: network, optimisers, place, random state
    model.safetensors   the trained network, once it is done
    run.json            the whole record in one file, once it is done

Every random draw follows from the seed and its place (`training.randomness`), so a run that is
killed at any moment and resumed ends with the same weights, bit for bit, as one never interrupted
- on the same machine with the same number of threads.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from fracskip import checkpoint
from fracskip.config import FOLDER_PREFIX, ImageConfig, ModelSpec, Recipe, recipe_from_dict
from fracskip.data import ImageSet, central, class_counts, load_split, split_validation
from fracskip.devices import describe, pick_device, use_bf16
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import ConfigError
from fracskip.evaluation import evaluate
from fracskip.files import write_atomically
from fracskip.machine import versions
from fracskip.quant.fused import fusing
from fracskip.training.balance import class_weights, rare_classes
from fracskip.training.batches import Batches
from fracskip.training.record import Record
from fracskip.training.sequence import STAGES, StageSequence
from fracskip.training.stages import Place, Stage
from fracskip.training.state import Position, Totals, optimiser_tensors

STATE_SCHEMA = "fracskip.training-state"
MAX_NAMED = 5
"""How many files a note names; the record names all."""


class RunInterrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the run; its state is saved and `resume` goes on from there."""


class TrainingWatcher(Protocol):
    """Who follows a run: a progress bar, a test."""

    def loading(self, done: int, total: int) -> None:
        """So many of the images are decoded."""
        ...

    def note(self, text: str) -> None:
        """Something about data or network that should be known before time is spent."""
        ...

    def stage(self, name: str, epochs: int, steps: int) -> None:
        """A stage begins, or goes on."""
        ...

    def step(self, place: Place, totals: Totals, lr: float) -> None:
        """A step is done; `totals` are the epoch's so far."""
        ...

    def epoch(self, event: dict[str, Any]) -> None:
        """An epoch is done; the event is what the record holds."""
        ...


class _Silent:
    def loading(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def stage(self, name: str, epochs: int, steps: int) -> None: ...
    def step(self, place: Place, totals: Totals, lr: float) -> None: ...
    def epoch(self, event: dict[str, Any]) -> None: ...


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, watcher: TrainingWatcher) -> None:
        self.recipe = recipe
        self.folder = folder
        self.watcher = watcher
        self.record = Record(folder)
        self.device = pick_device(recipe.runtime.device)
        self.bf16 = use_bf16(recipe.runtime.amp, self.device)
        if recipe.data.name.startswith(FOLDER_PREFIX):
            # The test set is read when all is trained; that it is missing is said now.
            class_counts(Path(recipe.data.name.removeprefix(FOLDER_PREFIX)), "test")
        everything = self._load("train", recipe.data.image.view)
        train, held = split_validation(everything, recipe.data.validation, recipe.data.split_seed)
        self.validation = central(held, recipe.data.image)
        if recipe.data.train_limit:
            train = train.subset(range(min(recipe.data.train_limit, len(train))))
        self.train = train
        self.batches = Batches(train, recipe.data, recipe.batch_size, recipe.seed, self.device)
        self.stop = False
        has_gate = len(recipe.option_set) > 1
        target = recipe.joint.target if has_gate else None
        self.spec = recipe.model_spec(train.class_names, train.name, target)
        weights = None
        if recipe.data.balance == "loss":
            weights = class_weights(torch.from_numpy(train.labels), len(train.class_names))
        self.sequence = StageSequence(
            recipe, self.spec, self.batches, self.validation, self.device, self.bf16, weights
        )

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
        tensors = {f"net.{name}": value for name, value in stage.net.state_dict().items()}
        if self.sequence.teacher is not None:
            for name, value in self.sequence.teacher.state_dict().items():
                tensors[f"teacher.{name}"] = value
        for index, optimiser in enumerate(stage.optimisers):
            for name, value in optimiser_tensors(optimiser).items():
                tensors[f"optimiser{index}.{name}"] = value
        tensors["random.cpu"] = torch.get_rng_state()
        meta = {"position": asdict(position), "recipe": self.recipe.model_dump(mode="json")}
        checkpoint.write_package(self.folder / "state.safetensors", STATE_SCHEMA, meta, tensors)

    # -- running --------------------------------------------------------------------------------

    def start(self) -> tuple[Position, Stage]:
        text = self.recipe.model_dump_json(indent=1)
        write_atomically(self.folder / "recipe.json", text.encode())
        first = self.sequence.first
        position, stage = Position(stage=first), self.sequence.begin(first, None)
        data = self._about_the_data()
        remarks = _remarks(data, self.recipe.data.balance)
        notes = [*remarks, *self.train.notes, *self.sequence.notes]
        for note in notes:
            self.watcher.note(note)
        self.record.path.unlink(missing_ok=True)
        self.record.append(
            {
                "event": "start",
                "name": self.recipe.name,
                "recipe": self.recipe.model_dump(mode="json"),
                "versions": versions(),
                "device": describe(self.device),
                "backbone_digest": self.sequence.backbone_digest,
                "teacher_digest": self.sequence.teacher_digest,
                "start_digest": self.sequence.start_digest,
                "data": data,
                "notes": notes,
            }
        )
        self.save(position, stage)
        return position, stage

    def resume(self) -> tuple[Position, Stage]:
        for litter in self.folder.glob(".*.part"):  # of a write that was killed
            litter.unlink()
        path = self.folder / "state.safetensors"
        package = checkpoint.read_package(path, STATE_SCHEMA)
        before = recipe_from_dict(package.meta["recipe"])
        # Where a run computes may change between sittings; what it computes may not.
        if before.model_dump(exclude={"runtime"}) != self.recipe.model_dump(exclude={"runtime"}):
            raise ConfigError(
                f"the run in {self.folder} was started with another recipe: resume it with that "
                "one, or start anew with another name"
            )
        values = dict(package.meta["position"])
        position = Position(**{**values, "totals": Totals(**values["totals"])})
        self.record.rewind(position.recorded)
        return position, self.sequence.restore(position, package.tensors, path)

    def execute(self, position: Position, stage: Stage) -> Stage:
        """Runs what is left of the stages; returns the last one."""
        while True:
            self._run_stage(position, stage)
            following = STAGES.index(position.stage) + 1
            if following == len(STAGES):
                return stage
            stage = self.sequence.begin(STAGES[following], stage)
            position.stage, position.epoch, position.step = stage.name, 0, 0
            self.save(position, stage)

    def _run_stage(self, position: Position, stage: Stage) -> None:
        steps = self.batches.steps
        if stage.epochs:
            self.watcher.stage(stage.name, stage.epochs, steps)
        stage.net.train()
        while position.epoch < stage.epochs:
            self._run_epoch(position, stage, steps)
            means = position.totals.means()
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
            place = Place(position.epoch, position.step, done)
            images, labels = self.batches.get(stage.name, place.epoch, place.step)
            result = stage.step(images, labels, place)
            seconds = time.perf_counter() - begin
            position.totals.add(result, seconds)
            position.seconds += seconds
            position.step += 1
            self.watcher.step(place, position.totals, stage.lr(done))
            if self.stop:
                self.save(position, stage)
                raise RunInterrupted(str(self.folder))
            if every and position.step % every == 0 and position.step < steps:
                self.save(position, stage)

    def _validate(self, stage: Stage) -> dict[str, Any]:
        data = self.validation
        if isinstance(stage.net, DynamicNetwork):
            found = evaluate(stage.net, data, static=False, examples=0)
            keys = ("accuracy", "cp", "bitops_ratio", "option_share", "decision_entropy_bits")
            result = {key: found[key] for key in keys}
        else:
            result = {"accuracy": _plain_accuracy(stage.net, data, self.spec), "cp": None}
        stage.net.train()
        return result

    def finish(self, position: Position, stage: Stage) -> Path:
        """Saves the network, reads the test set - once - and closes the record."""
        net = stage.net
        assert isinstance(net, DynamicNetwork)
        closing = self.sequence.close(net)
        path = self.folder / "model.safetensors"
        notes = {"recipe": self.recipe.name, "seed": self.recipe.seed, "versions": versions()}
        net.digest = checkpoint.save(net, path, notes)
        test = self._load("test", self.recipe.data.image)
        for note in ([_skipped(test.skipped)] if test.skipped else []) + list(test.notes):
            self.watcher.note(note)
        examples = self.recipe.data.examples
        found = evaluate(net, test, name=self.recipe.name, examples=examples)
        self.record.append(
            {
                "event": "end",
                "test": found,
                "skipped": list(test.skipped),
                **closing,
                "seconds": position.seconds,
            }
        )
        self.record.write_summary(self.folder / "run.json")
        return path


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


@torch.inference_mode()
def _plain_accuracy(net: torch.nn.Module, data: ImageSet, spec: ModelSpec) -> float:
    net.eval()
    device = next(net.parameters()).device
    right = 0
    for start in range(0, len(data), 250):
        pixels = torch.from_numpy(data.images[start : start + 250]).to(device)
        predicted = net(preprocess(pixels, spec.image)).argmax(1).cpu().numpy()
        right += int((predicted == data.labels[start : start + 250]).sum())
    return right / len(data)


@contextmanager
def _stops_on_interrupt(run: _Run) -> Iterator[None]:
    """Ctrl-C finishes the step and saves; a second one is the usual KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        run.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
            round, or the recipe changed.
        DataError: if the data set is not there.
        RunInterrupted: after Ctrl-C; the state is saved.
    """
    folder = Path(folder)
    started = (folder / "state.safetensors").exists()
    if resume and not started:
        raise ConfigError(f"{folder} holds no run to resume: start it without --resume")
    if started and not resume:
        raise ConfigError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another name"
        )
    if (folder / "run.json").exists():
        return folder / "model.safetensors"
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    run = _Run(recipe, folder, watcher or _Silent())
    # Recorded steps have compiled passes of their own.
    fuses = recipe.runtime.compile and not recipe.runtime.records_on(run.device.type)
    with _stops_on_interrupt(run), fusing(fuses):
        position, stage = run.resume() if resume else run.start()
        last = run.execute(position, stage)
    return run.finish(position, last)
