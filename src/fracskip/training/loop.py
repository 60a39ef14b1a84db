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

import copy
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from fracskip import checkpoint
from fracskip.config import ModelSpec, Recipe, recipe_from_dict
from fracskip.data import ImageSet, load_split, split_validation
from fracskip.devices import describe, pick_device, use_bf16
from fracskip.dynamic import DynamicNetwork, build_network, preprocess
from fracskip.errors import ConfigError
from fracskip.evaluation import evaluate
from fracskip.files import write_atomically
from fracskip.machine import versions
from fracskip.models import CifarResNet, create_model
from fracskip.training.batches import Batches
from fracskip.training.calibration import freeze_decisions, measure_curve, meet_target
from fracskip.training.depth import elimination_order
from fracskip.training.gates import GateTraining
from fracskip.training.joint import JointTraining
from fracskip.training.randomness import derive_seed
from fracskip.training.record import Record
from fracskip.training.stages import BackboneTraining, Place, Stage
from fracskip.training.state import Position, Totals, load_optimiser, optimiser_tensors

STATE_SCHEMA = "fracskip.training-state"
ORDER_BATCHES = 4  # on which the backbone's blocks are ordered by harm
STAGES = ("backbone", "gates", "joint")


class RunInterrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the run; its state is saved and `resume` goes on from there."""


class TrainingWatcher(Protocol):
    """Who follows a run: a progress bar, a test."""

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
        everything = load_split(recipe.data.name, "train", recipe.data.image)
        train, self.validation = split_validation(everything, recipe.data.validation, recipe.seed)
        if recipe.data.train_limit:
            train = train.subset(range(min(recipe.data.train_limit, len(train))))
        self.train = train
        self.batches = Batches(train, recipe.data, recipe.batch_size, recipe.seed, self.device)
        self.stop = False
        self.backbone_digest = ""  # of the file it was loaded from, if it was
        self.teacher: CifarResNet | None = None
        self.teacher_digest = ""  # likewise
        has_gate = len(recipe.option_set) > 1
        self.spec = ModelSpec(
            model=recipe.model,
            options=recipe.options,
            quant=recipe.quant,
            gate=recipe.gate,
            image=recipe.data.image,
            class_names=train.class_names,
            data_name=train.name,
            target=recipe.joint.target if has_gate else None,
        )

    # -- networks and stages ------------------------------------------------------------------

    def _place(self, net: torch.nn.Module) -> Any:
        net = net.to(self.device)
        if self.recipe.runtime.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def _plain(self, name: str = "") -> CifarResNet:
        channels, classes = self.recipe.data.image.channels, len(self.spec.class_names)
        return create_model(name or self.recipe.model.name, channels, classes)

    def _backbone(self) -> CifarResNet:
        net = self._plain()
        path = self.recipe.backbone_path
        if path is not None:
            self.backbone_digest = checkpoint.load_backbone(path, net)
        elif not self.recipe.backbone.epochs:
            raise ConfigError("backbone.epochs is 0 and backbone.load is empty: give one of them")
        return net

    def _frozen(self, net: CifarResNet) -> CifarResNet:
        teacher: CifarResNet = self._place(net).eval().requires_grad_(False)
        return teacher

    def _find_teacher(self, backbone: CifarResNet) -> None:
        path, stage = self.recipe.teacher_path, self.recipe.backbone
        if path is not None:
            teacher = self._plain(self.recipe.teacher.model)
            self.teacher_digest = checkpoint.load_backbone(path, teacher)
            self.teacher = self._frozen(teacher)
        elif stage.epochs and stage.distillation:
            self.teacher = self._frozen(copy.deepcopy(backbone))

    def _depth_order(self, net: CifarResNet) -> list[int]:
        stage = self.recipe.backbone
        if not (stage.epochs and stage.stochastic_depth and stage.depth_order == "harm"):
            return []
        count = min(self.batches.steps, ORDER_BATCHES)
        batches = [self.batches.get("order", 0, step) for step in range(count)]
        return elimination_order(net, batches, self.bf16)

    def _begin(self, name: str, before: Stage | None) -> Stage:
        """A stage at its start, built on what the one before it trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.recipe.seed, "init", name))
            if name == "backbone":
                net = self._place(self._backbone())
                self._find_teacher(net)
                order = self._depth_order(net)
                return BackboneTraining(
                    net, self.recipe, self.device, self.bf16, order, self.teacher
                )
            assert before is not None
            if name == "joint":
                net = before.net
                assert isinstance(net, DynamicNetwork)
                joint = self.recipe.joint
                if joint.decisions == "alike" and net.gate is not None:
                    freeze_decisions(net, self.validation, joint.target)
                if joint.epochs and joint.paths == "shared":
                    self._settle(net)
                    if joint.aim == "budgets":
                        measure_curve(net, self.validation, joint.budgets)
                return JointTraining(net, self.recipe, self.device, self.bf16, self.teacher)
            assert isinstance(before.net, CifarResNet)
            if self.recipe.joint.distillation and not self.recipe.teacher.load:
                self.teacher = self._frozen(copy.deepcopy(before.net))
            dynamic = self._place(DynamicNetwork(before.net, self.spec))
        wanted = self.recipe.quant.calibration_images
        count = min(self.batches.steps, max(1, wanted // self.recipe.batch_size))
        dynamic.calibrate([self.batches.get("calibration", 0, step)[0] for step in range(count)])
        return GateTraining(dynamic, self.recipe, self.device, self.bf16)

    def _restore(self, position: Position, tensors: dict[str, torch.Tensor]) -> Stage:
        """A stage as it was when its state was saved."""
        origin = self.folder / "state.safetensors"
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value
        if "teacher" in parts:
            plain = self._plain(self.recipe.teacher.model)
            checkpoint.apply_state(plain, parts["teacher"], origin)
            self.teacher = self._frozen(plain)
        stage: Stage
        if position.stage == "backbone":
            stage = BackboneTraining(
                self._place(self._plain()), self.recipe, self.device, self.bf16, (), self.teacher
            )
        else:
            net = self._place(build_network(self.spec))
            if position.stage == "gates":
                stage = GateTraining(net, self.recipe, self.device, self.bf16)
            else:
                stage = JointTraining(net, self.recipe, self.device, self.bf16, self.teacher)
        checkpoint.apply_state(stage.net, parts["net"], origin)
        for index, optimiser in enumerate(stage.optimisers):
            load_optimiser(optimiser, parts.get(f"optimiser{index}", {}))
        torch.set_rng_state(parts["random"]["cpu"])
        stage.load_state(position.stage_state)
        return stage

    # -- saving ---------------------------------------------------------------------------------

    def save(self, position: Position, stage: Stage) -> None:
        position.stage_state = stage.state()
        tensors = {f"net.{name}": value for name, value in stage.net.state_dict().items()}
        if self.teacher is not None:
            for name, value in self.teacher.state_dict().items():
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
        position, stage = Position(), self._begin(STAGES[0], None)
        self.record.path.unlink(missing_ok=True)
        self.record.append(
            {
                "event": "start",
                "name": self.recipe.name,
                "recipe": self.recipe.model_dump(mode="json"),
                "versions": versions(),
                "device": describe(self.device),
                "backbone_digest": self.backbone_digest,
                "teacher_digest": self.teacher_digest,
            }
        )
        self.save(position, stage)
        return position, stage

    def resume(self) -> tuple[Position, Stage]:
        for litter in self.folder.glob(".*.part"):  # of a write that was killed
            litter.unlink()
        package = checkpoint.read_package(self.folder / "state.safetensors", STATE_SCHEMA)
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
        return position, self._restore(position, package.tensors)

    def execute(self, position: Position, stage: Stage) -> Stage:
        """Runs what is left of the stages; returns the last one."""
        while True:
            self._run_stage(position, stage)
            following = STAGES.index(position.stage) + 1
            if following == len(STAGES):
                return stage
            stage = self._begin(STAGES[following], stage)
            position.stage, position.epoch, position.step = stage.name, 0, 0
            self.save(position, stage)

    def _run_stage(self, position: Position, stage: Stage) -> None:
        steps = self.batches.steps
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

    def _settle(self, net: DynamicNetwork) -> None:
        """Brings the cost to the target, and BatchNorm statistics to the paths that it takes."""
        assert net.spec.target is not None
        meet_target(net, self.validation, net.spec.target)
        count = self.recipe.joint.norm_images // self.recipe.batch_size
        if count:
            steps = range(min(self.batches.steps, count))
            net.reestimate([self.batches.get("norms", 0, step)[0] for step in steps])
            # Other statistics, slightly other decisions.
            meet_target(net, self.validation, net.spec.target)

    def finish(self, position: Position, stage: Stage) -> Path:
        """Saves the network, reads the test set - once - and closes the record."""
        net = stage.net
        assert isinstance(net, DynamicNetwork)
        if net.spec.target is not None:
            self._settle(net)
            measure_curve(net, self.validation, self.recipe.joint.budgets)
        path = self.folder / "model.safetensors"
        notes = {"recipe": self.recipe.name, "seed": self.recipe.seed, "versions": versions()}
        net.digest = checkpoint.save(net, path, notes)
        test = load_split(self.recipe.data.name, "test", self.recipe.data.image)
        found = evaluate(net, test, name=self.recipe.name)
        self.record.append(
            {
                "event": "end",
                "test": found,
                "lean": net.spec.lean,
                "curve": net.spec.curve,
                "seconds": position.seconds,
            }
        )
        self.record.write_summary(self.folder / "run.json")
        return path


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
    with _stops_on_interrupt(run):
        position, stage = run.resume() if resume else run.start()
        last = run.execute(position, stage)
    return run.finish(position, last)
