"""The stages in order, each built on what the one before it trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fracskip import checkpoint
from fracskip.config import ModelSpec, Recipe
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.dynamic.state import apply_state
from fracskip.errors import ConfigError
from fracskip.models import create_backbone
from fracskip.operating import OperatingPoints
from fracskip.training.batches import Labelled, TrainingBatches
from fracskip.training.depth import elimination_order
from fracskip.training.finalize import calibrate, finalize, fix_allocation, shrink
from fracskip.training.gates import GateTraining
from fracskip.training.joint import JointTraining
from fracskip.training.randomness import derive_seed, generator_at
from fracskip.training.sensitivities import SensitivityTraining
from fracskip.training.stages import BackboneTraining, Stage
from fracskip.training.state import Position, load_optimiser
from fracskip.training.supernet import SupernetTraining, draw_allocation

ORDER_BATCHES = 4  # on which the backbone's blocks are ordered by sensitivity
STAGES = ("backbone", "supernet", "gates", "joint")


class StageSequence:
    """Makes each stage: networks, teacher, calibration; and what ends the last one.

    Args:
        recipe: The run.
        spec: What its network is.
        batches: Training images.
        validation: To bring costs to their targets by; labels are not used.
        device: Where it trains.
        bf16: Whether in bfloat16.
        class_weights: What classes weigh in the cross-entropy (N,); None: all the same.

    Attributes:
        notes: What was done that somebody should know, in sentences.
        shortfalls: What `finish` found that was asked for and is not reached, likewise.
        teacher: Whom stages distil from, once it is there.
        backbone_digest: Of the file that the backbone was loaded from, if it was.
        teacher_digest: Likewise.
        start_digest: Of the dynamic network that the run goes on with, likewise.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: ModelSpec,
        batches: TrainingBatches,
        validation: Labelled,
        device: torch.device,
        bf16: bool,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.shortfalls: list[str] = []
        self.teacher: torch.nn.Module | None = None
        self.backbone_digest = ""
        self.teacher_digest = ""
        self.start_digest = ""
        self._recipe = recipe
        self._spec = spec
        self._batches = batches
        self._validation = validation
        self._device = device
        self._bf16 = bf16
        adaptive = len(recipe.option_set) > 1
        self._points = OperatingPoints(target=recipe.joint.target if adaptive else None)
        self._class_weights = None if class_weights is None else class_weights.to(device)

    # -- a stage's start ------------------------------------------------------------------------

    @property
    def first(self) -> str:
        """The stage that a run begins with."""
        return "supernet" if self._recipe.start else STAGES[0]

    def begin(self, name: str, before: Stage | None) -> Stage:
        """A stage at its start, built on what the one before it trained (None: on nothing)."""
        # Gates get their first weights as the network becomes dynamic.
        purpose = "gates" if name == "supernet" else name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._recipe.seed, "init", purpose))
            if name == "backbone":
                return self._begin_backbone()
            if before is None:
                return self._go_on()
            if name == "supernet":
                return self._begin_supernet(before.net)
            assert isinstance(before.net, DynamicNetwork)
            if name == "gates":
                return self._begin_gates(before.net)
            return self._begin_joint(before.net)

    def _begin_backbone(self) -> Stage:
        net = self._to_device(self._backbone())
        self._find_teacher(net)
        return self._stage("backbone", net, self._depth_order(net))

    def adopt(self, net: DynamicNetwork) -> Stage:
        """The supernet's stage of a converted network, which learns from what it was."""
        if self._recipe.supernet.distillation or self._recipe.joint.distillation:
            self.teacher = self._frozen(net.plain())
        net.operating_points = self._points
        placed: DynamicNetwork = self._to_device(net)
        placed.calibrate(self._calibration_images())
        return self._stage("supernet", placed)

    def _calibration_images(self) -> list[torch.Tensor]:
        wanted = self._recipe.quant.calibration_images
        return self._images("calibration", max(1, wanted // self._recipe.batch_size))

    def _go_on(self) -> Stage:
        """The supernet's stage, with the weights of a network that is dynamic already."""
        path = self._recipe.start_path
        assert path is not None
        net = checkpoint.load(path)
        for key in ("model", "options", "quant", "gate", "image", "class_names"):
            theirs, ours = getattr(net.spec, key), getattr(self._spec, key)
            if theirs != ours:
                raise ConfigError(
                    f"{path} does not fit the recipe: its {key} is {theirs!r}, the recipe's is "
                    f"{ours!r}; take over the one or start with another network"
                )
        # Where multipliers were found is where they are searched for first.
        before = net.operating_points
        points = self._points.changed(
            multiplier=before.multiplier, multiplier_curve=before.multiplier_curve
        )
        self.start_digest = net.digest
        own = build_network(self._spec, like=net)
        own.load_state_dict(net.state_dict())
        own.operating_points = points
        self._load_teacher()
        return self._stage("supernet", self._to_device(own))

    def _begin_supernet(self, backbone: torch.nn.Module) -> Stage:
        recipe = self._recipe
        learns = (recipe.supernet.epochs and recipe.supernet.distillation) or (
            recipe.joint.distillation
        )
        if learns and not recipe.teacher.load:
            self.teacher = self._frozen(copy.deepcopy(backbone))
        net = self._to_device(DynamicNetwork(backbone.eval(), self._spec))
        net.operating_points = self._points
        net.calibrate(self._calibration_images())
        return self._stage("supernet", net)

    def _begin_gates(self, net: DynamicNetwork) -> Stage:
        stage = self._recipe.supernet
        images = self._norm_images()
        if stage.epochs and images:
            # The weights have moved since calibration.
            drawn = []
            for index, batch in enumerate(images):
                draw = generator_at(self._recipe.seed, "supernet-norms", 0, index)
                allocation = draw_allocation(net, (index + 0.5) / len(images), stage, draw)
                drawn.append(torch.tensor(allocation, device=self._device).expand(len(batch), -1))
            net.reestimate(images, decisions=drawn)
        return self._stage("gates", net)

    def _begin_joint(self, net: DynamicNetwork) -> Stage:
        joint = self._recipe.joint
        if net.gate is not None:
            net.gate.round_embeddings()
        shrinkage = shrink(net, self._validation, self._recipe.gates, joint)
        if joint.decisions == "static" and net.gate is not None:
            fix_allocation(net, self._validation, joint)
        if joint.epochs and joint.allocation == "batch":
            calibrate(net, self._validation, joint, self._norm_images())
        stage = self._stage("joint", net)
        assert isinstance(stage, JointTraining)
        stage.shrinkage = shrinkage
        return stage

    # -- a stage anew, and the end ----------------------------------------------------------------

    def restore(self, position: Position, tensors: dict[str, torch.Tensor], origin: Path) -> Stage:
        """A stage as it was when its state was saved.

        Args:
            position: Where it stood.
            tensors: Of network, teacher and optimisers.
            origin: The file they are from, for errors.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value
        if "teacher" in parts:
            plain = self._plain(self._recipe.teacher.model)
            apply_state(plain, parts["teacher"], origin)
            self.teacher = self._frozen(plain)
        net: torch.nn.Module = self._plain()
        if position.stage != "backbone":
            net = build_network(self._spec)
            given = {"target": self._points.target, **(position.operating_points or {})}
            net.operating_points = OperatingPoints.model_validate(given)
        stage = self._stage(position.stage, self._to_device(net))
        apply_state(stage.net, parts["net"], origin)
        for index, optimiser in enumerate(stage.optimisers):
            load_optimiser(optimiser, parts.get(f"optimiser{index}", {}))
        torch.set_rng_state(parts["random"]["cpu"])
        stage.load_state(position.stage_state)
        return stage

    def finish(self, net: DynamicNetwork) -> dict[str, Any]:
        """What follows the last stage; see `finalize`.

        Returns:
            What was found, for the record.
        """
        found = None
        if net.gate is not None:
            found = finalize(net, self._validation, self._recipe.joint, self._norm_images())
            if found.shortfall:
                self.shortfalls.append(found.shortfall)
        elif self._recipe.joint.epochs:
            net.reestimate(self._norm_images())
        return {
            "operating_points": net.operating_points.model_dump(mode="json"),
            "cascade_gain": None if found is None else found.cascade_gain,
            "norms": None if found is None else found.norms,
        }

    # -- parts ------------------------------------------------------------------------------------

    def _stage(self, name: str, net: Any, order: list[int] | None = None) -> Stage:
        stage = self._make_stage(name, net, order)
        stage.class_weights = self._class_weights
        return stage

    def _make_stage(self, name: str, net: Any, order: list[int] | None) -> Stage:
        common = (self._recipe, self._device, self._bf16)
        if name == "backbone":
            return BackboneTraining(net, *common, order or [], self.teacher)
        if name == "supernet":
            return SupernetTraining(net, *common, self.teacher)
        if name == "gates":
            if net.gate is not None and net.gate.output == "sensitivity":
                return SensitivityTraining(net, *common)
            return GateTraining(net, *common)
        return JointTraining(net, *common, self.teacher)

    def _to_device(self, net: Any) -> Any:  # torch 2.13 does not type `to(memory_format=)`
        net = net.to(self._device)
        if self._recipe.runtime.channels_last:
            net = net.to(memory_format=torch.channels_last)
        return net

    def _plain(self, name: str = "") -> torch.nn.Module:
        channels, classes = self._spec.image.channels, len(self._spec.class_names)
        return create_backbone(name or self._recipe.model.name, channels, classes)

    def _backbone(self) -> torch.nn.Module:
        net = self._plain()
        path = self._recipe.backbone_path
        if path is not None:
            self.backbone_digest = checkpoint.load_backbone(
                path, net, self._note_new_classifier, self._note_prefix(path)
            )
        elif not self._recipe.backbone.epochs:
            raise ConfigError("backbone.epochs is 0 and backbone.load is empty: give one of them")
        return net

    def _note_new_classifier(self, layer: str, theirs: int, ours: int) -> None:
        """What becomes of a backbone that was trained for other classes.

        Raises:
            ConfigError: if there is no stage in which the new layer would learn.
        """
        backbone = self._recipe.backbone
        if not backbone.epochs:
            raise ConfigError(
                f"{backbone.load} was trained for {theirs} classes and the data has {ours}: its "
                f"last layer, {layer}, is made anew and has to learn; set backbone.epochs, such as "
                "5, and a small backbone.optim.lr, such as 0.02"
            )
        self.notes.append(
            f"{backbone.load} was trained for {theirs} classes and the data has {ours}: its last "
            f"layer, {layer}, was made anew"
        )

    def _note_prefix(self, path: Path) -> Callable[[str], None]:
        return lambda prefix: self.notes.append(
            f"every name in {path} begins with {prefix!r}, which was left out"
        )

    def _frozen(self, net: torch.nn.Module) -> torch.nn.Module:
        teacher: torch.nn.Module = self._to_device(net).eval().requires_grad_(False)
        return teacher

    def _find_teacher(self, backbone: torch.nn.Module) -> None:
        stage = self._recipe.backbone
        if not self._load_teacher() and stage.epochs and stage.distillation:
            self.teacher = self._frozen(copy.deepcopy(backbone))

    def _load_teacher(self) -> bool:
        """The teacher that the recipe names, if it names one."""
        path = self._recipe.teacher_path
        if path is None:
            return False
        teacher = self._plain(self._recipe.teacher.model)
        self.teacher_digest = checkpoint.load_backbone(
            path, teacher, on_prefix=self._note_prefix(path)
        )
        self.teacher = self._frozen(teacher)
        return True

    def _depth_order(self, net: torch.nn.Module) -> list[int]:
        stage = self._recipe.backbone
        elastic = stage.depth_sampling == "elastic"
        if not (elastic and stage.epochs and stage.stochastic_depth):
            return []
        batches = self._batches
        steps = range(min(batches.steps, ORDER_BATCHES))
        found = [batches.get("order", 0, i) for i in steps]
        return elimination_order(net, self._recipe, found, self._bf16)

    def _images(self, purpose: str, count: int) -> list[torch.Tensor]:
        """So many batches of training images, or all there are."""
        steps = range(min(self._batches.steps, count))
        return [self._batches.get(purpose, 0, step)[0] for step in steps]

    def _norm_images(self) -> list[torch.Tensor]:
        """What to estimate statistics from; of 'paper' quantisation they stay as they are."""
        if self._spec.quant.scheme == "paper":
            return []
        return self._images("norms", self._recipe.joint.norm_images // self._recipe.batch_size)
