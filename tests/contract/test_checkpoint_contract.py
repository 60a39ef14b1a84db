"""What a checkpoint file holds: names of tensors, metadata, what Python sees of the package."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fracskip
from fracskip import checkpoint
from fracskip.dynamic import DynamicNetwork
from fracskip.models import create_model

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ROWS = ("option_weight", "option_bias", "option_mean", "option_var")
STEPS = ("weight_step", "activation_step")


def block(name: str, fractional: bool, projects: bool) -> set[str]:
    keys = set()
    for index in (1, 2):
        keys.add(f"{name}.conv{index}.weight")
        keys |= {f"{name}.bn{index}.{part}" for part in NORM}
        if fractional:
            keys |= {f"{name}.conv{index}.quantiser.{part}" for part in STEPS}
            keys |= {f"{name}.bn{index}.{part}" for part in ROWS}
    if projects:
        keys.add(f"{name}.downsample.0.weight")
        keys |= {f"{name}.downsample.1.{part}" for part in NORM}
    return keys


def backbone(fractional: bool) -> set[str]:
    return {
        "conv1.weight",
        *(f"bn1.{part}" for part in NORM),
        *block("layer1.0", False, False),
        *block("layer2.0", fractional, True),
        *block("layer3.0", fractional, True),
        "fc.weight",
        "fc.bias",
    }


EMBED = {f"gate.embed.{index}.{part}" for index in (0, 1) for part in ("weight", "bias")}
GATES = {
    "recurrent": {
        *EMBED,
        *(f"gate.lstm.{part}_{side}" for part in ("weight", "bias") for side in ("ih", "hh")),
        "gate.out.weight",
        "gate.out.bias",
    },
    "feedforward": {
        *EMBED,
        *(f"gate.out.{index}.{part}" for index in (0, 1) for part in ("weight", "bias")),
    },
}


def test_a_backbone_has_torchvisions_names() -> None:
    assert set(create_model("resnet8").state_dict()) == backbone(fractional=False)


@pytest.mark.parametrize("kind", GATES)
def test_tensors_of_a_dynamic_network(make_net: Callable[..., DynamicNetwork], kind: str) -> None:
    net = make_net(gate={"kind": kind, "width": 4})
    plain = {f"backbone.{name}" for name in backbone(fractional=True)}
    assert set(net.state_dict()) == plain | GATES[kind]


def test_tensors_of_a_gate_that_takes_a_budget(make_net: Callable[..., DynamicNetwork]) -> None:
    with_budget = set(make_net(gate={"budget_input": True}).state_dict())
    assert with_budget - set(make_net().state_dict()) == {
        "gate.budget_embed.weight",
        "gate.budget_embed.bias",
    }


def test_tensors_of_the_papers_scheme(make_net: Callable[..., DynamicNetwork]) -> None:
    """One range and one BatchNorm for all widths: rows of none."""
    state = make_net(quant={"scheme": "paper"}).state_dict()
    assert {name for name in state if "quantiser" in name} == {
        f"backbone.layer{layer}.0.conv{conv}.quantiser.activation_range"
        for layer in (2, 3)
        for conv in (1, 2)
    }
    assert all(value.shape[0] == 0 for name, value in state.items() if "option_" in name)


def test_the_file(checkpoint_file: Path) -> None:
    with safe_open(checkpoint_file, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert set(metadata) == {"fracskip"}
    head = json.loads(metadata["fracskip"])
    assert set(head) == {"schema", "version", "meta", "digest"}
    assert head["schema"] == "fracskip.checkpoint"
    assert head["version"] == 2
    assert set(head["meta"]) == {"spec", "operating_points", "notes"}
    assert set(head["meta"]["spec"]) == {
        *(
            "model",
            "options",
            "quant",
            "gate",
            "image",
            "class_names",
            "data_name",
        ),
    }
    assert head["meta"]["operating_points"] == {
        "target": 0.1,
        "multiplier": 0.0,
        "multiplier_curve": [],
        "cascade": [],
    }
    assert names == {f"backbone.{name}" for name in backbone(True)} | GATES["recurrent"]


def test_how_the_digest_is_made(checkpoint_file: Path) -> None:
    """As docs and other readers may do it: without fracskip, from the file alone."""
    with safe_open(checkpoint_file, "pt") as file:
        head = json.loads(file.metadata()["fracskip"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    digest = head.pop("digest")
    # The file's is over all that it says; a network goes by its tensors alone.
    whole, own = hashlib.sha256(json.dumps(head, sort_keys=True).encode()), hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        for total in (whole, own):
            total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.numpy().tobytes())
    assert digest == f"sha256:{whole.hexdigest()}"
    assert checkpoint.load(checkpoint_file).digest == f"sha256:{own.hexdigest()}"


def test_public_names() -> None:
    assert fracskip.__all__ == [
        "BundleError",
        "Cascade",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DynamicNetwork",
        "FracskipError",
        "GateConfig",
        "ImageConfig",
        "InferenceSession",
        "MissingExtraError",
        "OperatingPoints",
        "Option",
        "OptionSet",
        "Prediction",
        "QuantConfig",
        "__version__",
        "build_network",
        "cascade",
        "convert",
        "evaluate",
        "export",
        "export_bundle",
        "fit",
        "load",
        "load_sample",
        "preprocess",
        "quantize",
        "register_adapter",
        "save",
        "sweep",
    ]
    for name in fracskip.__all__:
        assert getattr(fracskip, name) is not None
    for name in ("BundleError", "CheckpointError", "ConfigError", "DataError", "MissingExtraError"):
        assert issubclass(getattr(fracskip, name), fracskip.FracskipError)


def test_the_readmes_five_lines(checkpoint_file: Path, pictures: Path) -> None:
    """Load, preprocess, run, save: with public names alone."""
    net = fracskip.load(checkpoint_file)
    sample = fracskip.load_sample()
    with torch.inference_mode():
        out = net(fracskip.preprocess(sample.images[:2, :8, :8], net.spec.image))
    assert isinstance(out, fracskip.Prediction)
    assert out.logits.shape == (2, 3)
