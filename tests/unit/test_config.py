from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fracskip.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageConfig,
    ModelSpec,
    Recipe,
    load_recipe,
    recipe_from_dict,
)
from fracskip.errors import ConfigError
from fracskip.options import PRESETS

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "tiny"\n[joint]\nepochs = 2\n', encoding="utf-8")
    return path


def test_defaults_load() -> None:
    recipe = recipe_from_dict({"name": "tiny"})
    assert recipe == Recipe(name="tiny")
    assert recipe.options == ("skip", "8", "16", "full")
    assert recipe.option_set == PRESETS["paper"]
    assert (recipe.seed, recipe.batch_size, recipe.model.name) == (0, 128, "resnet38")
    assert (recipe.data.name, recipe.data.image.size) == ("cifar10", (32, 32))
    assert (recipe.quant.scheme, recipe.gate.kind, recipe.gate.width) == ("lsq", "recurrent", 10)
    assert (recipe.joint.target, recipe.joint.gate_gradient) == (0.05, "sampled")
    assert recipe.backbone_path is None


def test_a_record_of_a_recipe_reads_back_as_the_recipe() -> None:
    recipe = recipe_from_dict({"name": "tiny", "options": "low", "joint": {"target": 0.02}})
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({"naem": 1}, ["unknown key 'naem'"]),
        ({"joint": {"epoch": 1}}, ["unknown key 'joint.epoch'"]),
        ({"joint": {"optim": {"lrr": 1}}}, ["unknown key 'joint.optim.lrr'"]),
        ({"data": {"image": {"sizes": 1}}}, ["unknown key 'data.image.sizes'"]),
        (
            {"x": 1, "gate": {"y": 2}, "seed": -1},
            ["unknown key 'x'", "unknown key 'gate.y'", "seed: "],
        ),
    ],
)
def test_every_unknown_key_is_named(tree: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^origin: ") as caught:
        recipe_from_dict({"name": "tiny", **tree}, origin="origin")
    assert all(key in str(caught.value) for key in keys)


def test_a_missing_name_is_named() -> None:
    with pytest.raises(ConfigError, match="name is missing"):
        recipe_from_dict({})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"name": "a b"}, "name: .*given: 'a b'"),
        ({"name": "../up"}, "name: "),
        ({"name": ""}, "name: "),
        ({"batch_size": 0}, "batch_size: .*given: 0"),
        ({"seed": 1.5}, "seed: "),
        ({"quant": {"scheme": "modren"}}, "quant.scheme: .*'lsq' or 'paper'"),
        ({"gate": {"kind": "lstm"}}, "gate.kind: .*'recurrent' or 'feedforward'"),
        ({"gate": {"width": 0}}, "gate.width: "),
        ({"joint": {"target": 0}}, "joint.target: "),
        ({"joint": {"target": 1.01}}, "joint.target: "),
        ({"joint": {"uniform_rate": 1}}, "joint.uniform_rate: "),
        ({"joint": {"sample_rate": 0}}, "joint.sample_rate: "),
        ({"gates": {"confidence": 1}}, "gates.confidence: "),
        ({"backbone": {"optim": {"lr": 0}}}, "backbone.optim.lr: "),
        ({"backbone": {"optim": {"momentum": 1}}}, "backbone.optim.momentum: "),
        ({"joint": {"gate_lr": float("inf")}}, "joint.gate_lr: .*finite"),
        ({"joint": {"target": float("nan")}}, "joint.target: "),
        ({"data": {"image": {"mean": [0.5, float("nan"), 0.5]}}}, "data.image.mean.1: .*finite"),
        ({"data": {"image": {"std": [0.2, 0.0, 0.2]}}}, "data.image.std.1: "),
        ({"data": {"image": {"size": [32, 7]}}}, "data.image.size.1: "),
        ({"data": {"image": {"size": [32]}}}, "data.image.size"),
        ({"data": {"image": {"channels": 2}}}, "data.image.channels: "),
        ({"data": {"validation": 0}}, "data.validation: "),
        ({"data": {"augment": "crop"}}, "data.augment: .*'pad' or 'resized'"),
        ({"data": {"crop_scale": [0.5, 0.2]}}, "crop_scale .0.5, 0.2.: give the smaller"),
        ({"data": {"crop_scale": [0, 1]}}, "data.crop_scale.0: "),
        ({"data": {"balance": "weights"}}, "data.balance: .*'none', 'sample' or 'loss'"),
        ({"data": {"on_corrupt": "ignore"}}, "data.on_corrupt: .*'error' or 'skip'"),
        ({"data": {"workers": -1}}, "data.workers: "),
        ({"data": {"image": {"resize": 16}}}, "data.image: .*resize 16 is smaller"),
        ({"joint": 3}, "joint: .*given: 3"),
        ({"options": ["8", "skip"]}, "options: .*ascend"),
        ({"options": []}, "options: .*at least one"),
        ({"options": "papper"}, "options: .*papper.*paper7"),
        ({"options": [True, 8]}, "options: .*True is unknown"),
        ({"options": 8}, "options: .*options 8 are unknown"),
        ({"options": [[8]]}, r"options: .*option \[8\] is unknown"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_given(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe_from_dict({"name": "tiny", **tree})


@pytest.mark.parametrize(
    "image",
    [
        {"channels": 1},
        {"mean": [0.5], "std": [0.2, 0.2, 0.2]},
        {"mean": [0.5, 0.5, 0.5], "std": [0.2]},
        {"channels": 1, "mean": [0.5], "std": [0.2, 0.2]},
    ],
)
def test_mean_and_std_need_one_value_a_channel(image: dict[str, Any]) -> None:
    channels = image.get("channels", 3)
    with pytest.raises(ConfigError, match=f"need {channels} values each, one a channel; got"):
        recipe_from_dict({"name": "tiny", "data": {"image": image}})
    good = ImageConfig(channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    assert len(good.mean) == len(good.std) == channels


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("low", ("skip", "2", "3", "4", "6", "8")),
        ("skip8", ("skip", "8", "full")),
        (["skip", 4, "8", "full"], ("skip", "4", "8", "full")),
        ([0, 32], ("skip", "full")),
        ([8], ("8",)),
    ],
)
def test_options_are_a_preset_or_a_list(value: Any, labels: tuple[str, ...]) -> None:
    recipe = recipe_from_dict({"name": "tiny", "options": value})
    assert recipe.options == labels
    assert recipe.option_set.labels == labels


CIFAR = ImageConfig()


@pytest.mark.parametrize(
    ("data", "mean", "std"),
    [
        ({"name": "cifar100"}, CIFAR.mean, CIFAR.std),
        ({"image": {"size": [64, 64]}}, CIFAR.mean, CIFAR.std),
        ({"name": "folder:x"}, IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "folder:x", "image": {"size": [64, 64]}}, IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "folder:x", "image": ImageConfig(size=(64, 64))}, IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "folder:x", "image": {"mean": [0.5] * 3}}, (0.5,) * 3, IMAGENET_STD),
        ({"name": "folder:x", "image": {"std": [0.5] * 3}}, IMAGENET_MEAN, (0.5,) * 3),
    ],
)
def test_photographs_are_normalised_as_imagenets(
    data: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    recipe = recipe_from_dict({"name": "tiny", "data": data})
    assert (recipe.data.image.mean, recipe.data.image.std) == (mean, std)
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


def test_what_is_seen_before_the_centre_is_cut() -> None:
    assert CIFAR.view is CIFAR
    square = ImageConfig(size=(128, 128), resize=146)
    assert square.view == ImageConfig(size=(146, 146))
    assert ImageConfig(size=(40, 60), resize=50).view.size == (50, 75)
    assert ImageConfig(size=(60, 40), resize=40).view.size == (60, 40)
    with pytest.raises(ValidationError, match=r"resize 127 is smaller than the image of 128x128"):
        ImageConfig(size=(128, 128), resize=127)


def test_no_resize_is_not_written() -> None:
    """Bundles and checkpoints of networks without it are what they were."""
    assert list(CIFAR.model_dump()) == ["size", "channels", "mean", "std"]
    resized = ImageConfig(size=(8, 8), resize=9)
    assert resized.model_dump()["resize"] == 9
    assert ImageConfig.model_validate_json(resized.model_dump_json()) == resized


def test_a_runs_recipe_is_read_again(minimal: Path) -> None:
    recipe = load_recipe(minimal)
    written = minimal.with_name("recipe.json")
    written.write_text(recipe.model_dump_json())
    assert load_recipe(written) == recipe
    assert load_recipe(written, ["seed=4"]).seed == 4
    written.write_text("[1]")
    with pytest.raises(ConfigError, match=r"recipe\.json is no table"):
        load_recipe(written)
    written.write_text("{")
    with pytest.raises(ConfigError, match=r"recipe\.json is not valid JSON"):
        load_recipe(written)


def test_values_are_frozen() -> None:
    recipe = recipe_from_dict({"name": "tiny"})
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        recipe.joint.target = 0.5
    with pytest.raises(ValidationError, match="frozen"):
        recipe.data.image.channels = 1


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("joint.epochs=4", lambda r: r.joint.epochs == 4),
        ("joint.optim.lr=0.5", lambda r: r.joint.optim.lr == 0.5),
        ("options=low", lambda r: r.options == PRESETS["low"].labels),
        ('options=["skip", 4, "full"]', lambda r: r.options == ("skip", "4", "full")),
        ("model.name=resnet20", lambda r: r.model.name == "resnet20"),
        ('model.name="resnet20"', lambda r: r.model.name == "resnet20"),
        ("data.flip=false", lambda r: r.data.flip is False),
        ("data.name=folder:/a=b", lambda r: r.data.name == "folder:/a=b"),
        ('data.image={"size": [16, 24]}', lambda r: r.data.image.size == (16, 24)),
        ("backbone.load=", lambda r: r.backbone.load == ""),
    ],
)
def test_an_override_sets_one_value(minimal: Path, assignment: str, read: Any) -> None:
    assert not read(load_recipe(minimal)) or assignment == "backbone.load="
    assert read(load_recipe(minimal, [assignment]))


def test_overrides_keep_what_they_do_not_name_and_the_last_one_wins(minimal: Path) -> None:
    recipe = load_recipe(minimal, ["joint.target=0.5", "seed=1", "seed=2"])
    assert (recipe.joint.epochs, recipe.joint.target, recipe.seed) == (2, 0.5, 2)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("joint.epochs", "key=value.*'joint.epochs'"),
        ("=3", "key=value.*'=3'"),
        ("", "key=value"),
        ("joint.epochs.more=1", "'epochs' is a value, not a table"),
        ("name.x=1", "'name' is a value, not a table"),
        ("joint.epoch=1", "unknown key 'joint.epoch'"),
        ("jiont.epochs=1", "unknown key 'jiont'"),
        ("joint..epochs=1", "unknown key 'joint.'"),
        ("joint.epochs=many", "joint.epochs: .*'many'"),
        ("joint=3", "joint: "),
        ("joint.gate_lr=Infinity", "joint.gate_lr: .*finite"),
    ],
)
def test_a_bad_override_is_refused(minimal: Path, assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(minimal, [assignment])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist.*\.toml file"):
        load_recipe(tmp_path / "nowhere.toml")


def test_a_folder_or_foreign_bytes_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml cannot be read"):
        load_recipe(binary)


def test_bad_toml_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "a"\nseed = = 1\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML.*line 2"):
        load_recipe(path)


def test_an_error_names_the_file(minimal: Path) -> None:
    minimal.write_text('name = "tiny"\nunheard = 1\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.toml: unknown key 'unheard'"):
        load_recipe(minimal)


def test_a_relative_backbone_counts_from_the_recipes_folder(
    minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = minimal.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    relative = load_recipe(minimal, ["backbone.load=../models/net.safetensors"])
    assert relative.backbone_path == minimal.parent / "../models/net.safetensors"
    absolute = load_recipe(minimal, ["backbone.load=/models/net.safetensors"])
    assert absolute.backbone_path == Path("/models/net.safetensors")
    assert load_recipe(minimal).backbone_path is None
    # Where the file lay is no part of what the run is.
    assert "folder" not in str(relative.model_dump())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_published_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    for weights in (recipe.backbone_path, recipe.start_path, recipe.teacher_path):
        assert weights is None or weights.is_file()  # no other run has to come first


def test_every_command_in_a_published_recipe_is_valid() -> None:
    """Seeds, widths and depths are no recipes of their own, but overrides that headers name."""
    comments = [
        "\n".join(line.removeprefix("#") for line in path.read_text(encoding="utf-8").split("\n"))
        for path in RECIPES
    ]
    commands = [
        shlex.split(line)[2:]
        for text in comments
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip().startswith("fracskip train recipes/")
    ]
    ran = [
        load_recipe(RECIPES[0].parents[1] / words[0], words[2::2])
        for words in commands
        if set(words[1::2]) <= {"--set"}
    ]
    assert len(ran) == len(commands) > len(RECIPES)
    assert len({recipe.name for recipe in ran}) == len(ran)


def test_there_are_published_recipes() -> None:
    assert RECIPES


def test_a_spec_reads_back_and_refuses_what_is_impossible() -> None:
    tree: dict[str, Any] = {
        "model": {"name": "resnet8"},
        "options": "skip8",
        "quant": {},
        "gate": {},
        "image": {},
        "class_names": ["cat", "dog"],
        "data_name": "sample",
    }
    spec = ModelSpec.model_validate(tree)
    assert spec.options == ("skip", "8", "full")
    assert spec.option_set == PRESETS["skip8"]
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    for bad in ({"target": 0.1}, {"options": ["skip"]}, {"extra": 1}):
        with pytest.raises(ValidationError):
            ModelSpec.model_validate({**tree, **bad})
