"""Recipes: what a run does, as typed, frozen values. The only home of defaults.

A recipe is a TOML file; `load_recipe` reads it, applies `--set key=value` overrides and validates
everything before any work begins. Unknown keys are errors.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from fracskip.config.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Count,
    Fraction,
    Frozen,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    OptionLabels,
    QuantConfig,
)
from fracskip.config.stages import (
    BackboneStage,
    GateStage,
    JointStage,
    SupernetStage,
    TeacherConfig,
)
from fracskip.errors import ConfigError, shortened
from fracskip.files import parse_json, read_file
from fracskip.legacy import recipe as todays_recipe
from fracskip.options import OptionSet

FOLDER_PREFIX = "folder:"
MAX_FAULTS, MAX_SHOWN = 100, 8  # of which an error's parts are read, and shown
MAX_QUOTED = 100  # characters
MAX_RECIPE_BYTES = 16 << 20
EXAMPLES = 12  # of the cheapest and of the dearest images, in a record


class DataConfig(Frozen):
    """Which images train the network, and how they are varied.

    Attributes:
        name: cifar10, cifar100, fashion-mnist, sample (the bundled images), or folder:PATH.
        image: Size, channels and normalisation; of a folder, ImageNet's where none is given.
        validation: Images carved from the training set to choose by; the test set is read once.
        split_seed: Which images those are. It is not the run's seed, so that runs with other random
            numbers hold out the images that their backbone held out.
        train_limit: Use only the first so many training images, after carving (0: all of them).
        augment: How training images are cropped: 'pad' (at random out of the image with zeros
            around it) or 'resized' (a part of random size and proportions, brought to
            `image.size`: usual for photographs).
        crop_padding: With 'pad', zero pixels added on each side before a random crop.
        crop_scale: With 'resized', the least and the largest share of the image's area that a crop
            takes; its proportions are off by a factor of 3/4 to 4/3.
        flip: Mirror half of the training images.
        balance: What is done for rare classes: 'none', 'sample' (each class is drawn equally often)
            or 'loss' (the cross-entropy weighs each class by the inverse of its frequency).
        on_corrupt: Of a folder, whether images that cannot be decoded are an 'error' or left out
            ('skip'; the record lists them).
        workers: Processes that decode a folder; 0 decodes with threads of this one. The images are
            the same.
        examples: How many of the cheapest and of the dearest test images the record names, by
            their indices.
    """

    name: str = "cifar10"
    image: ImageConfig = ImageConfig()
    validation: Annotated[int, Field(ge=1)] = 5000
    split_seed: Count = 0
    train_limit: Count = 0
    augment: Literal["pad", "resized"] = "pad"
    crop_padding: Count = 4
    crop_scale: tuple[Fraction, Fraction] = (0.35, 1.0)
    flip: bool = True
    balance: Literal["none", "sample", "loss"] = "none"
    on_corrupt: Literal["error", "skip"] = "error"
    workers: Count = 0
    examples: Count = EXAMPLES

    @model_validator(mode="before")
    @classmethod
    def _photographs_are_normalised_as_imagenets(cls, given: Any) -> Any:
        if not (isinstance(given, dict) and str(given.get("name", "")).startswith(FOLDER_PREFIX)):
            return given
        image = given.get("image", {})
        if isinstance(image, ImageConfig):
            image = image.model_dump(exclude_unset=True)
        if isinstance(image, dict) and image.get("channels", 3) == 3:
            given = {**given, "image": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **image}}
        return given

    @model_validator(mode="after")
    def _crops_have_a_range(self) -> DataConfig:
        low, high = self.crop_scale
        if low > high:
            raise ValueError(f"crop_scale [{low}, {high}]: give the smaller share first")
        return self


class RuntimeConfig(Frozen):
    """Where and how a run executes.

    Attributes:
        device: 'auto' takes a GPU when there is one.
        amp: 'auto' uses bfloat16 where the device computes in it, 'bf16' always, 'off' never.
        channels_last: Memory layout of images and weights.
        compile: Compile the backbone stage (but for stochastic depth) and the passes of fake
            quantisation with torch.compile: a quarter less time, once a C++ compiler is there.
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
        seed: All randomness follows from it, but which images validation gets (`data.split_seed`).
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
    def _sensitivity_is_measured(self) -> Recipe:
        if self.gate.output == "sensitivity" and self.gates.label != "sensitivity":
            raise ValueError(
                "gate.output 'sensitivity' is learned from what options do to predictions: set "
                "gates.label to 'sensitivity'"
            )
        return self

    @model_validator(mode="after")
    def _blocks_are_told_apart_by_biases(self) -> Recipe:
        gate, gates = self.gate, self.gates
        biased = gate.block_bias or gate.kind != "recurrent" or len(self.option_set) == 1
        shrinks = gates.shrinkage or gates.block_shrinkage
        if not biased and (shrinks or self.joint.decisions == "static"):
            raise ValueError(
                "gates.shrinkage, gates.block_shrinkage and joint.decisions 'static' need a bias "
                "of each block's own: set gate.block_bias to true, or leave them out"
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

    def model_spec(self, class_names: Sequence[str], data_name: str) -> ModelSpec:
        """What the run's network is.

        Args:
            class_names: What labels stand for.
            data_name: Of the training images.
        """
        return ModelSpec(
            model=self.model,
            options=self.options,
            quant=self.quant,
            gate=self.gate,
            image=self.data.image,
            class_names=tuple(class_names),
            data_name=data_name,
        )

    @property
    def option_set(self) -> OptionSet:
        """The options as a set."""
        return OptionSet.of(self.options)


def explain(error: ValidationError) -> str:
    """Says in one line what pydantic found wrong: key, reason, and what was given.

    Of many faults the first few are shown, and how many there are.
    """
    count = error.error_count()
    if count > MAX_FAULTS:  # a list of them all would take hundreds of bytes for each
        return f"{count:,} of its keys and values are wrong, too many to list"
    parts = []
    for item in error.errors(include_url=False, include_context=False)[:MAX_SHOWN]:
        key = shortened(".".join(map(str, item["loc"])), MAX_QUOTED)
        message = item["msg"].removeprefix("Value error, ")
        if not key:  # what several keys have to do with one another
            parts.append(message)
        elif item["type"] == "extra_forbidden":
            parts.append(f"unknown key {key!r}")
        elif item["type"] == "missing":
            parts.append(f"{key} is missing")
        else:
            given = shortened(repr(item["input"]), MAX_QUOTED)
            parts.append(f"{key}: {shortened(message, 2 * MAX_QUOTED)} (given: {given})")
    more = [f"and {count - MAX_SHOWN} more"] if count > MAX_SHOWN else []
    return "; ".join(parts + more)


def override(tree: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Sets values of a recipe's dictionary by `key=value` (dotted keys, JSON values).

    Raises:
        ConfigError: if an assignment is none, or its key leads into a value.
    """
    for assignment in assignments:
        _override(tree, assignment)
    return tree


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
    """Validates a recipe given as a dictionary; keys of older versions are read, with a warning.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of range.
    """
    tree, notes = todays_recipe(tree)
    for note in notes:
        warnings.warn(f"{origin}: {note}", stacklevel=2)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error)}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides (dotted keys, JSON values).

    A relative `backbone.load` is taken from the recipe's own folder.

    Args:
        path: A .toml file, or the recipe.json of a run.
        overrides: What to change.

    Raises:
        ConfigError: if the file is missing, no TOML, or says something impossible.
    """
    path = Path(path)
    instead = "give the path of a .toml file"
    data = read_file(path, "recipe", ConfigError, instead, MAX_RECIPE_BYTES)
    read = parse_json if path.suffix == ".json" else tomllib.loads
    try:
        tree = read(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"recipe {path} is not valid {kind}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} is no table of keys and values: give a recipe's file")
    recipe = recipe_from_dict(override(tree, overrides), origin=str(path))
    recipe._folder = path.parent
    return recipe
