"""The records' schemas: reports, scripts and papers read them by these keys."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fracskip.checkpoint import load
from fracskip.config import Recipe
from fracskip.data import load_split
from fracskip.evaluation import evaluate
from fracskip.training import train

EVALUATION = {
    "schema": str,
    "checkpoint": dict,
    "checkpoint_digest": str,
    "data": dict,
    "images": int,
    "budget": type(None),
    "accuracy": float,
    "cp": float,
    "bitops_ratio": float,
    "escalation_rate": float,
    "option_share": dict,
    "decision_entropy_bits": float,
    "seconds": float,
    "device": str,
    "versions": dict,
    "blocks": list,
    "classes": list,
    "static": list,
    "examples": dict,
}
EPOCH = {
    "event": str,
    "stage": str,
    "epoch": int,
    "step": int,
    "loss": float,
    "accuracy": float,
    "cp": float,
    "lr": float,
    "seconds": float,
    "validation": dict,
}
VALIDATION = {"accuracy", "cp", "bitops_ratio", "option_share", "decision_entropy_bits"}


def types(tree: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in tree.items()}


# -- evaluations ----------------------------------------------------------------------------------


@pytest.fixture
def evaluation(checkpoint_file: Path, pictures: Path) -> dict[str, Any]:
    net = load(checkpoint_file)
    data = load_split(f"folder:{pictures}", "test", net.spec.image)
    tree: dict[str, Any] = json.loads(json.dumps(evaluate(net, data, name="tiny")))
    return tree


def test_keys_of_an_evaluation(evaluation: dict[str, Any]) -> None:
    assert types(evaluation) == EVALUATION
    assert evaluation["schema"] == "fracskip.evaluation/2"
    assert types(evaluation["checkpoint"]) == {
        "name": str,
        "digest": str,
        "model": str,
        "options": list,
        "quant": str,
        "gate": str,
        "target": float,
        "macs": int,
    }
    assert types(evaluation["data"]) == {"name": str, "split": str, "digest": str, "image": dict}
    assert set(evaluation["versions"]) == {"python", "fracskip", "torch", "numpy"}


def test_keys_of_its_rows(evaluation: dict[str, Any]) -> None:
    for row in evaluation["blocks"]:
        assert types(row) == {"name": str, "macs": int, "option_share": dict, "entropy_bits": float}
    for row in evaluation["classes"]:
        assert types(row) == {
            "name": str,
            "images": int,
            "accuracy": float,
            "cp": float,
            "option_share": dict,
        }
    for row in evaluation["static"]:
        assert types(row) == {
            "option": str,
            "accuracy": float,
            "cp": float,
            "bitops_ratio": float,
            "seconds": float,
        }
    assert set(evaluation["examples"]) == {"cheapest", "dearest"}
    for row in evaluation["examples"]["cheapest"] + evaluation["examples"]["dearest"]:
        assert types(row) == {
            "index": int,
            "label": str,
            "predicted": str,
            "cp": float,
            "allocation": list,
            "first_allocation": type(None),
        }
    for key in ("blocks", "classes", "static"):
        assert evaluation[key], f"nothing was looked at in {key}"


def test_shares_are_keyed_by_the_options_labels(evaluation: dict[str, Any]) -> None:
    assert list(evaluation["option_share"]) == ["skip", "4", "full"]


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Iterator[Path]:
    threads = torch.get_num_threads()
    short = {"backbone": {"epochs": 1}, "gates": {"epochs": 1}, "joint": {"epochs": 1}}
    train(tiny_recipe(**short), tmp_path / "run")
    yield tmp_path / "run"
    torch.set_num_threads(threads)


def test_events_of_a_run(folder: Path) -> None:
    events = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    start, backbone, gates, joint, end = events
    assert types(start) == {
        "event": str,
        "name": str,
        "recipe": dict,
        "versions": dict,
        "device": str,
        "backbone_digest": str,
        "teacher_digest": str,
        "start_digest": str,
        "data": dict,
        "notes": list,
    }
    assert start["data"] == {
        "source": start["data"]["source"],
        "train": 39,
        "validation": 9,
        "classes": {"blue": 13, "green": 13, "red": 13},
        "rare": [],
        "skipped": [],
    }
    assert start["data"]["source"].startswith("image folder ")
    assert start["notes"] == []
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "epoch", "end"]

    assert types(backbone) == {**EPOCH, "cp": type(None)}
    assert backbone["stage"] == "backbone"
    assert set(backbone["validation"]) == {"accuracy", "cp"}
    assert backbone["validation"]["cp"] is None
    agreement = {**EPOCH, "agreement": float}
    del agreement["accuracy"]
    assert types(gates) == agreement
    assert gates["stage"] == "gates"
    assert set(gates["validation"]) == VALIDATION
    assert types(joint) == {**EPOCH, "price": float}
    assert joint["stage"] == "joint"
    assert set(joint["validation"]) == VALIDATION

    assert types(end) == {
        "event": str,
        "test": dict,
        "skipped": list,
        "notes": list,
        "operating_points": dict,
        "cascade_gain": type(None),
        "norms": str,
        "seconds": float,
    }
    assert types(end["test"]) == EVALUATION


def test_a_runs_summary(folder: Path) -> None:
    summary = json.loads((folder / "run.json").read_text())
    assert types(summary) == {
        "schema": str,
        "name": str,
        "recipe": dict,
        "versions": dict,
        "device": str,
        "data": dict,
        "notes": list,
        "epochs": list,
        "operating_points": dict,
        "cascade_gain": type(None),
        "norms": str,
        "test": dict,
        "seconds": float,
    }
    assert summary["schema"] == "fracskip.run/2"
    assert set(summary["data"]) == {
        *("source", "train", "validation", "classes", "rare", "skipped", "skipped_test")
    }
    recipe = json.loads((folder / "recipe.json").read_text())
    assert summary["recipe"] == recipe
    assert set(recipe) == {
        *("name", "seed", "batch_size", "options", "start", "data", "model", "quant", "gate"),
        *("teacher", "backbone", "supernet", "gates", "joint", "runtime"),
    }
    assert set(recipe["data"]) == {
        *("name", "image", "validation", "split_seed", "train_limit", "augment"),
        *("crop_padding", "crop_scale", "flip", "balance", "on_corrupt", "workers", "examples"),
    }
    assert set(recipe["data"]["image"]) == {"size", "channels", "mean", "std"}
