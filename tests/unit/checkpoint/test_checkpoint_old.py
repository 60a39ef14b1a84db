"""Files that older versions wrote (`support.old`), and what they say of today's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import support.old
from fracskip import legacy
from fracskip.checkpoint import load, save
from support.old.network import Small, images

FOLDER = Path(support.old.__file__).parent
ANSWERS: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "answers.json").read_text())
ANSWERS["second/gated"] = json.loads((FOLDER / "second" / "answers.json").read_text())
POINTS: dict[str, dict[str, Any]] = {
    "cascade": {
        "target": 0.02,
        "multiplier": 4.0,
        "multiplier_curve": ((0.01, 12.0), (0.02, 4.0), (0.045, 1.0)),
        "cascade": ((0.012, 0.01, 0.03, 0.7), (0.04, 0.02, 0.045, 0.9)),
    },
    "logits": {
        "target": 0.2,
        "multiplier": -0.25,
        "multiplier_curve": ((0.05, 1.0), (0.6, -0.75)),
        "cascade": (),
    },
    "stream": {"target": None, "multiplier": 0.0, "multiplier_curve": (), "cascade": ()},
    "static": {"target": None, "multiplier": 0.0, "multiplier_curve": (), "cascade": ()},
    "second/gated": {
        "target": 0.02,
        "multiplier": 4.0,
        "multiplier_curve": ((0.005, 60.0), (0.02, 4.0), (0.05, 0.5)),
        "cascade": (
            (0.008, 0.005, 0.03, 0.4329490065574646),
            (0.04, 0.02, 0.05, 0.575252890586853),
        ),
    },
}


@pytest.mark.parametrize("name", POINTS)
def test_an_old_checkpoint_answers_as_it_did(name: str, tmp_path: Path) -> None:
    net = load(FOLDER / f"{name}.safetensors", model=Small())
    assert net.operating_points.model_dump() == POINTS[name]
    assert str(net.operating_points.multiplier) != "-0.0"
    assert net.spec.gate.output == (
        "sensitivity" if name in ("cascade", "second/gated") else "logit"
    )
    save(net, tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors", model=Small())
    assert (again.spec, again.operating_points) == (net.spec, net.operating_points)
    for answer in ANSWERS[name]:
        for each in (net, again):
            with torch.no_grad():
                found = each(images(), budget=answer["budget"])
            assert found.decisions.tolist() == answer["decisions"]
            torch.testing.assert_close(found.cost, torch.tensor(answer["cost"]))
            torch.testing.assert_close(
                found.logits, torch.tensor(answer["logits"]), atol=2e-6, rtol=1e-5
            )
            if answer["escalated"] is None:
                assert len(found.executions) == 1
            else:
                assert found.escalated.tolist() == answer["escalated"]
                assert found.executions[0].decisions.tolist() == answer["first"]


@pytest.mark.parametrize(
    ("stage_state", "state", "points"),
    [
        ({"path": [1, 0]}, {"allocation": [1, 0]}, {}),
        ({"price": 0.5}, {"price": 0.5}, {}),
        ({"price": 0.5, "lean": 2.0}, {"price": 0.5, "multiplier": -2.0}, {"multiplier": -2.0}),
        (
            {"lean": -1.0, "curve": [[0.1, -2.0], [0.2, 0.0]], "target": 0.1, "trust": 0.1,
             "block_trust": 0.5},
            {"shrinkage": {"images": 0.9, "blocks": 0.5}},
            {"multiplier": 1.0, "multiplier_curve": [[0.1, 2.0], [0.2, 0.0]], "target": 0.1},
        ),
    ],
)  # fmt: skip
def test_where_an_old_training_stands(
    stage_state: dict[str, Any], state: dict[str, Any], points: dict[str, Any]
) -> None:
    meta = {"position": {"stage": "joint", "stage_state": stage_state}, "recipe": {}}
    found = legacy.training_state(meta)["position"]
    assert found == {"stage": "joint", "stage_state": state, "operating_points": points}


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"spec": [1]},
        {"spec": {"curve": 3, "lean": "much", "gate": 4, "cascade": {}}},
        {"spec": {"curve": [[1], 2, "ab", [0.1, None]], "gate": {"output": ["harm"]}}},
    ],
)
def test_what_is_of_no_version_is_left_to_its_readers(meta: dict[str, Any]) -> None:
    before = json.dumps(meta)
    found = legacy.checkpoint(meta)
    assert json.dumps(meta) == before
    assert found.get("operating_points", {}).get("multiplier", "much") == "much"
