"""Recipes: what a run does, as typed, frozen values. The only home of defaults.

A recipe is a TOML file; `load_recipe` reads it, applies `--set key=value` overrides and validates
everything before any work begins. Unknown keys are errors.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from fracskip.config.network import (
    Count,
    Fraction,
    Frozen,
    GateConfig,
    ImageConfig,
    ModelConfig,
    NonNegative,
    OptionLabels,
    Positive,
    QuantConfig,
)
from fracskip.errors import ConfigError
from fracskip.options import OptionSet


class DataConfig(Frozen):
    """Which images train the network, and how they are varied.

    Attributes:
        name: cifar10, cifar100, fashion-mnist, sample (the bundled images), or folder:PATH.
        image: Size, channels and normalisation.
        validation: Images carved from the training set to choose by; the test set is read once.
        train_limit: Use only the first so many training images, after carving (0: all of them).
        crop_padding: Zero pixels added on each side before a random crop.
        flip: Mirror half of the training images.
    """

    name: str = "cifar10"
    image: ImageConfig = ImageConfig()
    validation: Annotated[int, Field(ge=1)] = 5000
    train_limit: Count = 0
    crop_padding: Count = 4
    flip: bool = True


class OptimConfig(Frozen):
    """SGD with Nesterov momentum and a learning rate schedule.

    Attributes:
        lr: The highest learning rate.
        momentum: Of the weights' update.
        weight_decay: For convolutions and the classifier; norms, steps and gates are exempt.
        schedule: 'cosine' to zero, 'onecycle' (linear up, then linear down to zero), or 'step'
            (a tenth at 1/2 and again at 3/4: the paper's).
        warmup: Share of the stage spent rising linearly to `lr`.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest norm of the weights' gradient (0: not clipped).
    """

    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 1e-4
    schedule: Literal["cosine", "onecycle", "step"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: NonNegative = 0.0


class BackboneStage(Frozen):
    """Stage 1: the full-precision backbone, trained or loaded.

    Attributes:
        load: A safetensors file with torchvision's parameter names, or '' to train from scratch.
        epochs: Training epochs (0 with `load`: take it as it is).
        stochastic_depth: Largest rate at which blocks are left out of a step (0: none is). The
            first block and projections never are, and what is executed is not scaled up: a
            dynamic network will not scale it either.
        depth_order: Which blocks: 'depth' (each by lot, with a probability that rises from 0 at the
            first block to the rate at the last: Huang et al., ECCV 2016) or 'harm' (a share drawn
            between 0 and the rate, of the blocks that the network misses least; needs `load`).
        distillation: Weight of the divergence from the teacher's predictions, the cross-entropy
            keeping the rest (0: no teacher).
        distillation_temperature: Softens both predictions.
        optim: The optimiser.
    """

    load: str = ""
    epochs: Count = 0
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    depth_order: Literal["depth", "harm"] = "depth"
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0
    optim: OptimConfig = OptimConfig(lr=0.2, weight_decay=5e-4, schedule="onecycle", warmup=0.25)

    @model_validator(mode="after")
    def _harm_is_measured_on_a_trained_network(self) -> BackboneStage:
        if self.depth_order == "harm" and not self.load:
            raise ValueError(
                "depth_order 'harm' needs a trained backbone in load: an untrained one misses "
                "nothing; use 'depth'"
            )
        return self


class TeacherConfig(Frozen):
    """Whom the network learns from in the stages whose `distillation` is above 0.

    Attributes:
        load: A plain network's weights or checkpoint; '' is the run's own backbone, frozen as the
            stage found it.
        model: The teacher's model where `load` is given; '' is the run's.
    """

    load: str = ""
    model: str = ""


class SupernetStage(Frozen):
    """Stage 2: weights of all options, on paths drawn by lot, before gates judge the options.

    BatchNorm statistics stand still, as in the joint stage.

    Attributes:
        epochs: Training epochs (0: options are only calibrated, and learn in the joint stage).
        skip_rate: Largest share of blocks that a step skips.
        uniform_rate: Share of steps in which all blocks execute one option, as in a static network.
        low_focus: Exponent of the drawn level: above 1, cheap options are drawn more often, for
            they are further from the backbone and have more to learn.
        optim: The optimiser.
        distillation: Weight of the divergence from the teacher's predictions (0: no teacher).
        distillation_temperature: Softens both predictions.
    """

    epochs: Count = 0
    skip_rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    uniform_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    low_focus: Positive = 1.0
    optim: OptimConfig = OptimConfig(lr=3e-3, schedule="cosine", warmup=0.05, clip_norm=1.0)
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0


class GateStage(Frozen):
    """Stage 3: gates alone, around one option that they choose at first.

    Attributes:
        epochs: Passes over the training set; forward only, so each costs about a third of one. With
            0 only the gates' output bias is set: decisions then differ from image to image at once
            (after `start`, gates stay as they are).
        option: The option they learn to choose, from whose cost the joint stage descends; '' is
            the most precise.
        label: What they learn: 'option' (that option everywhere) or 'harm' (how much each image's
            prediction changes where one block executes less: what is harmless is left out first).
        path: What the other blocks execute while 'harm' is measured in one: 'option' (that option),
            or 'own' (what the gates choose for most images at the cost that they approach, from
            the option's to `joint.target`: what a block adds depends on which others are there).
        confidence: The probability that the gates learn to give it. Below 1 so that the softmax
            is not saturated when the joint stage begins.
        lr: Of Adam.
    """

    epochs: Count = 1
    option: Annotated[str, BeforeValidator(str)] = ""
    label: Literal["option", "harm"] = "option"
    path: Literal["option", "own"] = "option"
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.8
    lr: Positive = 3e-3


class JointStage(Frozen):
    """Stage 4: weights and gates together, towards a computation percentage.

    BatchNorm statistics stand still here, so the learning rate must be about a tenth of what the
    backbone's own fine-tuning would take: 0.02 diverges within ten steps, 0.003 is stable.

    Attributes:
        epochs: Training epochs.
        target: The computation percentage to reach, as a share (0.05 is 5%).
        optim: The weights' optimiser; its schedule also drives the gates' learning rate.
        paths: 'each' (every image takes its own) or 'shared' (all images of a batch take the path
            of one of them, drawn by lot: nothing is grouped, so a step costs what its blocks cost;
            only the weights learn, and gates, price and exploration have no part in it).
        aim: With shared paths: what the paths' cost aims at, 'target', or 'budgets' (at every step
            another one between the least and the largest of them, even in log cost: one training
            for all).
        decisions: 'each' (every image's own) or 'alike' (as the stage begins, each block is frozen
            at what the gates choose for the mean image at the target: a static network of mixed
            precision, to compare with; needs `gate_lr` 0).
        gate_lr: Highest learning rate of the gates (Adam). With 0 they stay as their own stage left
            them, and only 'balance' moves their decisions, by its lean.
        objective: 'price' (a multiplier raised while the cost is above target), 'balance' (a lean
            on all decisions holds the cost at the target, and the price is the one at which the
            gates have no drift to more or less computation) or 'paper' (the sign of the error
            times `beta`).
        price_rate: How fast the price follows the error ('balance': the drift), per step.
        lean_rate: How fast the lean of 'balance' answers an error, per step.
        distillation: Weight of the divergence from the teacher's predictions, the cross-entropy
            keeping the rest (0: no teacher). Costs a third of a backbone step.
        distillation_temperature: Softens both predictions.
        diversity: Weight of a reward on what decisions tell of their image (the mutual
            information, averaged over blocks; 0: none).
        beta: The paper's factor, for a batch of 128 images.
        descent: Share of the stage in which the target falls from the cost of `gates.option` to
            `target`.
        exploration: Scale of the Gumbel noise on the gates' logits; it falls to zero.
        exploration_until: Share of the stage after which there is no noise.
        temperature: Of the softmax that carries the gates' gradient. Decisions do not depend on it;
            above 1 it keeps options in reach that the gates have all but ruled out.
        gate_gradient: 'sampled' (options not chosen are tried on a few images: an unbiased
            estimate) or 'dense' (every option for every image: the paper's way, about K times
            the cost).
        sample_rate: Share of images on which 'sampled' tries another option.
        anchor_rate: Share of each batch (with shared paths: share of steps) whose blocks all
            execute one option, drawn anew each step: keeps options that the gates have left able to
            compute (and to be compared).
        budgets: Costs at which the decisions' lean is measured once all is trained, so that
            callers may name any budget between the least and the largest of them.
        norm_images: Training images on which, once all is trained, BatchNorm statistics are
            estimated anew along the paths that the gates choose (0: they stay as they are).
    """

    epochs: Count = 10
    target: Fraction = 0.05
    optim: OptimConfig = OptimConfig(lr=3e-3, schedule="cosine", warmup=0.05, clip_norm=1.0)
    paths: Literal["each", "shared"] = "each"
    aim: Literal["target", "budgets"] = "target"
    decisions: Literal["each", "alike"] = "each"
    gate_lr: NonNegative = 2e-3
    objective: Literal["price", "balance", "paper"] = "price"
    price_rate: Positive = 0.01
    lean_rate: Positive = 0.5
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0
    diversity: NonNegative = 0.0
    beta: Positive = 1e-5
    descent: Annotated[float, Field(ge=0, lt=1)] = 0.3
    exploration: NonNegative = 1.0
    exploration_until: Fraction = 0.6
    temperature: Positive = 3.0
    gate_gradient: Literal["sampled", "dense"] = "sampled"
    sample_rate: Fraction = 0.25
    anchor_rate: Annotated[float, Field(ge=0, lt=1)] = 0.125
    budgets: tuple[Fraction, ...] = ()
    norm_images: Count = 1536

    @model_validator(mode="after")
    def _gates_learn_from_own_paths(self) -> JointStage:
        if self.paths == "shared" and self.gate_lr:
            raise ValueError("paths 'shared' teach the gates nothing: set gate_lr to 0")
        if self.aim == "budgets" and (self.paths != "shared" or len(self.budgets) < 2):
            raise ValueError("aim 'budgets' needs paths 'shared' and two budgets at least")
        if self.decisions == "alike" and (self.gate_lr or self.budgets):
            raise ValueError(
                "decisions 'alike' leave the gates nothing to learn and no budget to follow: set "
                "gate_lr to 0 and budgets to []"
            )
        return self


class RuntimeConfig(Frozen):
    """Where and how a run executes.

    Attributes:
        device: 'auto' takes a GPU when there is one.
        amp: 'auto' uses bfloat16 where the device computes in it, 'bf16' always, 'off' never.
        channels_last: Memory layout of images and weights.
        compile: Compile the backbone stage and the passes of fake quantisation with torch.compile:
            a quarter less time, once a C++ compiler is there.
        threads: CPU threads (0: torch's own choice).
        checkpoint_steps: Also checkpoint every so many steps within an epoch (0: only per epoch).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "bf16", "off"] = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: Count = 0
    checkpoint_steps: Count = 0


class Recipe(Frozen):
    """A whole run.

    Attributes:
        name: Names the run's folder and its record.
        seed: All randomness follows from it.
        batch_size: Images a step.
        options: A preset's name or a list of options.
        start: A dynamic network's checkpoint whose training goes on, '' to begin with a plain
            backbone. Its model, options, quantisation and gate must be the recipe's; only stages
            with epochs change it, and a teacher has to be named.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    batch_size: Annotated[int, Field(ge=1)] = 128
    options: OptionLabels = ("skip", "8", "16", "full")
    start: str = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    quant: QuantConfig = QuantConfig()
    gate: GateConfig = GateConfig()
    teacher: TeacherConfig = TeacherConfig()
    backbone: BackboneStage = BackboneStage()
    supernet: SupernetStage = SupernetStage()
    gates: GateStage = GateStage()
    joint: JointStage = JointStage()
    runtime: RuntimeConfig = RuntimeConfig()
    # Where the recipe's file lies; no part of what the run is, so it stays out of records.
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _gates_start_at_an_option(self) -> Recipe:
        if self.gates.option and len(self.option_set) > 1:
            self.option_set.index(self.gates.option)
        return self

    @model_validator(mode="after")
    def _harm_is_taught_by_harm(self) -> Recipe:
        if self.gate.output == "harm" and self.gates.label != "harm":
            raise ValueError(
                "gate.output 'harm' is learned from what options do: set gates.label to 'harm'"
            )
        return self

    @model_validator(mode="after")
    def _a_teacher_knows_something_and_is_asked(self) -> Recipe:
        backbone = self.backbone
        if backbone.epochs and backbone.distillation and not (self.teacher.load or backbone.load):
            raise ValueError(
                "backbone.distillation needs a trained teacher: set teacher.load, or backbone.load "
                "to learn from the backbone as it was"
            )
        stages = (backbone, self.supernet, self.joint)
        if self.teacher.load and not any(stage.distillation for stage in stages):
            raise ValueError(
                "teacher.load is given and no stage learns from it: set distillation in backbone, "
                "supernet or joint, or leave it out"
            )
        if self.teacher.model and not self.teacher.load:
            raise ValueError("teacher.model is given without teacher.load: which weights?")
        return self

    @model_validator(mode="after")
    def _a_start_is_whole(self) -> Recipe:
        if self.start and (self.backbone.load or self.backbone.epochs):
            raise ValueError(
                "start brings a whole network: leave backbone.load and backbone.epochs out (a "
                "teacher goes into teacher.load)"
            )
        learns = (self.supernet, self.joint)
        if self.start and not self.teacher.load and any(each.distillation for each in learns):
            raise ValueError("distillation after start needs a teacher: set teacher.load")
        return self

    @property
    def start_option(self) -> int:
        """Index of the option that the gates learn to choose first."""
        option = self.gates.option
        return self.option_set.index(option) if option else self.option_set.top

    @property
    def backbone_path(self) -> Path | None:
        """The backbone's weights to load; a relative path counts from the recipe's folder."""
        return self._folder / self.backbone.load if self.backbone.load else None

    @property
    def start_path(self) -> Path | None:
        """The dynamic network to go on with, likewise."""
        return self._folder / self.start if self.start else None

    @property
    def teacher_path(self) -> Path | None:
        """The teacher's weights, likewise."""
        return self._folder / self.teacher.load if self.teacher.load else None

    @property
    def option_set(self) -> OptionSet:
        """The options as a set."""
        return OptionSet.of(self.options)


def explain(error: ValidationError) -> str:
    """Says in one line what pydantic found wrong: key, reason, and what was given."""
    parts = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"])) or "recipe"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {key!r}")
        elif item["type"] == "missing":
            parts.append(f"{key} is missing")
        else:
            parts.append(f"{key}: {item['msg']} (given: {item['input']!r})")
    return "; ".join(parts)


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, such as joint.epochs=4; got {assignment!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {assignment}: {part!r} is a value, not a table")
    tree[last] = value


def recipe_from_dict(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validates a recipe given as a dictionary.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of range.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error)}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides (dotted keys, JSON values).

    A relative `backbone.load` is taken from the recipe's own folder.

    Raises:
        ConfigError: if the file is missing, no TOML, or says something impossible.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist; give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None
    for assignment in overrides:
        _override(tree, assignment)
    recipe = recipe_from_dict(tree, origin=str(path))
    recipe._folder = path.parent
    return recipe
