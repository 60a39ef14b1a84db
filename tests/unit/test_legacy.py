"""Files of older versions are read in today's words, and their users are told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fracskip.cli import main
from fracskip.config import load_recipe, recipe_from_dict
from fracskip.errors import ConfigError
from fracskip.legacy import bundle, recipe, record, run_event, training_state, translated
from fracskip.report import load_record
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord

OLD = Path(__file__).parents[1] / "support" / "old"
CAPTURE = "runtime.capture does nothing any more: leave it out"


@pytest.mark.parametrize("name", ["recipe.toml", "recipe.json"])  # written by hand; of a run
def test_an_old_recipe_loads_with_a_warning(name: str) -> None:
    today = {"name": "old", "options": ["skip", 4, 8], "joint": {"epochs": 1}}
    with pytest.warns(UserWarning, match=rf"{name}: {CAPTURE}") as said:
        found = load_recipe(OLD / name)
    assert len(said) == 1
    wanted = recipe_from_dict({**today, "runtime": {"compile": True}})
    assert found.model_dump() == wanted.model_dump()


def test_a_run_s_folder_goes_on_with_the_recipe_of_before(tmp_path: Path) -> None:
    from fracskip.training.folder import require_same_recipe

    before = json.loads((OLD / "recipe.json").read_text())
    before["runtime"]["capture"] = False  # as runs record what was not asked for: without a word
    today = recipe_from_dict({"name": "old", "options": ["skip", 4, 8], "joint": {"epochs": 1}})
    require_same_recipe(before, today, tmp_path)


@pytest.mark.filterwarnings("default")
def test_the_command_line_says_it_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(OLD / "recipe.toml"), "--resume"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"fracskip: warning: {OLD / 'recipe.toml'}: {CAPTURE}"
    assert len(rest) == 1  # there is nothing to resume


@pytest.mark.parametrize(
    ("tree", "today", "notes"),
    [
        ({"runtime": {"capture": True}}, {"runtime": {}}, [CAPTURE]),
        ({"runtime": {"capture": False, "threads": 2}}, {"runtime": {"threads": 2}}, []),
        ({"runtime": {"compile": True}}, {"runtime": {"compile": True}}, []),
        ({"runtime": 3}, {"runtime": 3}, []),
        ({"capture": True}, {"capture": True}, []),
        ([1], [1], []),
    ],
)
def test_a_recipe_in_today_s_words(tree: Any, today: Any, notes: list[str]) -> None:
    given = copy.deepcopy(tree)
    assert recipe(given) == (today, notes)
    assert given == tree


@pytest.mark.parametrize(
    ("tree", "today"),
    [
        ({"a": {"b": 1, "x": 2}}, {"a": {"x": 2}, "c": {"d": 1}}),
        # Which of the two is meant is for whoever reads today's keys to ask.
        ({"a": {"b": 1}, "c": {"d": 2, "e": 3}}, {"a": {"b": 1}, "c": {"d": 2, "e": 3}}),
        ({"f": [1], "a": 0}, {"a": 0, "g": [1]}),
        ({"c": 5}, {"c": 5}),
    ],
)
def test_keys_that_have_moved(tree: Any, today: Any) -> None:
    assert translated(tree, {"a.b": "c.d", "f": "g"}) == (today, [])


def test_every_key_and_value_of_a_recipe_of_version_2() -> None:
    """`second/recipe.toml` has every one that was renamed, but for a static allocation's."""
    found = load_recipe(OLD / "second" / "recipe.toml")
    assert found.options == ("skip", "8", "full")
    assert (found.quant.scheme, found.quant.weights) == ("lsq", "per_option")
    assert found.backbone.depth_sampling == "elastic"
    gates, joint = found.gates, found.joint
    assert (gates.label, gates.allocation, gates.cutout) == ("sensitivity", "chosen", 2)
    assert gates.shrinkage == (1.0, 0.9, 0.5, 0.0)
    assert gates.block_shrinkage == (0.75, 0.0)
    assert (joint.allocation, joint.decisions, joint.members) == ("batch", "dynamic", 2)
    assert (joint.multiplier_rate, joint.uniform_rate) == (0.25, 0.5)
    assert load_recipe(OLD / "second" / "static.toml").joint.decisions == "static"
    # As the run that was made of it recorded it, and with an override by its old name.
    before = json.loads((OLD / "second" / "state_joint.json").read_text())["recipe"]
    ours = recipe_from_dict(before)
    assert (ours.gates, ours.joint, ours.quant) == (gates, joint, found.quant)
    again = load_recipe(OLD / "second" / "recipe.toml", ["joint.looks=1"])
    assert again.joint == joint.model_copy(update={"members": 1})


def test_a_recipe_in_words_of_today_refuses_those_of_before_beside_them() -> None:
    tree = {"name": "both", "gates": {"trusts": [0.25], "shrinkage": [0.5]}}
    with pytest.raises(ConfigError, match=r"unknown key 'gates\.trusts'"):
        recipe_from_dict(tree)


@pytest.mark.parametrize(
    ("stage", "state"),
    [
        ("gates", {"allocation": [1, 1, 1, 1, 1]}),
        ("joint", {"shrinkage": {"images": 0.0, "blocks": 0.75}}),
    ],
)
def test_where_a_training_of_version_2_stood(stage: str, state: dict[str, Any]) -> None:
    meta = json.loads((OLD / "second" / f"state_{stage}.json").read_text())
    before = copy.deepcopy(meta)
    found = training_state(meta)
    assert meta == before
    assert found["position"]["stage_state"] == state
    kept = {key: value for key, value in before["position"].items() if key != "stage_state"}
    assert found["position"] == {**kept, "stage_state": state}
    assert training_state(found) == found


def test_an_evaluation_and_a_sweep_of_before() -> None:
    record = load_record(OLD / "second" / "evaluation.json")
    assert isinstance(record, EvaluationRecord)
    before = json.loads((OLD / "second" / "evaluation.json").read_text())
    assert 0 < record.escalation_rate == before["second_looks"] < 1
    assert record.checkpoint.quant == "lsq"
    for ours, theirs in (("cheapest", "easiest"), ("dearest", "hardest")):
        rows = getattr(record.examples, ours)
        assert [row.index for row in rows] == [row["index"] for row in before["examples"][theirs]]
        for row, old in zip(rows, before["examples"][theirs], strict=True):
            assert list(row.allocation) == old["path"]
            first = None if row.first_allocation is None else list(row.first_allocation)
            assert first == old["first_path"]
    curve = load_record(OLD / "second" / "sweep.json")
    assert isinstance(curve, SweepRecord)
    old = json.loads((OLD / "second" / "sweep.json").read_text())["points"]
    rates = [point.escalation_rate for point in curve.points]
    assert rates == [point["second_looks"] for point in old]
    assert any(rates)


def test_a_run_of_before_and_its_log_are_the_same_run() -> None:
    summary, log = (load_record(OLD / "second" / name) for name in ("run.json", "record.jsonl"))
    assert isinstance(summary, RunRecord)
    assert isinstance(log, RunRecord)
    assert summary == log
    before = json.loads((OLD / "second" / "run.json").read_text())
    assert recipe_from_dict(summary.recipe).gates.block_shrinkage == (0.75, 0.0)
    for epoch, old in zip(summary.epochs, before["epochs"], strict=True):
        gates = epoch.stage == "gates"
        assert (epoch.accuracy, epoch.agreement) == (
            (None, old["accuracy"]) if gates else (old["accuracy"], None)
        )
    assert summary.test is not None
    assert summary.test.examples.cheapest
    today = record(before)
    assert today["norms"] == {"paths": "decisions"}.get(before["norms"], before["norms"])
    assert record(today) == today


def test_events_of_version_1() -> None:
    epoch = {"event": "epoch", "stage": "joint", "lean": -2.0, "trust": 0.1, "block_trust": 0.5}
    assert run_event(epoch) == {
        "event": "epoch",
        "stage": "joint",
        "multiplier": 2.0,
        "shrinkage": {"images": 0.9, "blocks": 0.5},
    }
    points = {"multiplier": 1.0, "multiplier_curve": [[0.1, 3.0]]}
    end = {"event": "end", "lean": -1.0, "curve": [[0.1, -3.0]]}
    assert run_event(end) == {"event": "end", "operating_points": points}


def test_controls_of_before() -> None:
    point = {
        "second_looks": 0.1, "cp_of_the_look_that_decides": 0.2, "dealt_to_other_images": 0.3,
        "drawn_by_each_blocks_shares": 0.4, "frozen_at_each_blocks_majority": {"cp": 0.5},
        "second_looks_by_lot": None, "in_one_look": {"accuracy": 0.6}, "budget": 0.7,
    }  # fmt: skip
    tree = {"schema": "fracskip.controls/1", "points": [point], "as_trained": point}
    wanted = {
        "escalation_rate": 0.1, "cp_of_the_member_that_answers": 0.2, "permuted_decisions": 0.3,
        "random_decisions": 0.4, "static_allocation": {"cp": 0.5}, "random_escalation": None,
        "single_member": {"accuracy": 0.6}, "budget": 0.7,
    }  # fmt: skip
    today = {"schema": "fracskip.controls/2", "points": [wanted], "as_trained": wanted}
    assert record(tree) == today
    assert record({"schema": "fracskip.allocation/1", "points": [{"path": ["8"]}]}) == {
        "schema": "fracskip.allocation/2",
        "points": [{"allocation": ["8"]}],
    }


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [1],
        {"schema": 3},
        {"schema": "fracskip.evaluation/1", "examples": [1], "checkpoint": 2},
        {"schema": "fracskip.evaluation/1", "examples": {"easiest": 5, "hardest": [7]}},
        {"schema": "fracskip.run/1", "epochs": [3, {"stage": "gates", "kept": 4}], "recipe": 1},
        {"schema": "fracskip.sweep/1", "points": {"a": 1}},
    ],
)
def test_what_is_no_record_is_left_to_its_readers(tree: Any) -> None:
    before = copy.deepcopy(tree)
    record(tree)
    assert tree == before


@pytest.mark.parametrize(
    ("parts", "today"),
    [
        ([{"after": [{"padding": [1, 2]}]}], [{"after": [{"padding": [1, 2, 1, 2]}]}]),
        # Four are no padding of version 3, nor are eight one of today's.
        ([{"shortcut": [{"padding": [1, 1, 1, 1]}]}], [{"shortcut": [{"padding": [1] * 8}]}]),
        ([{"branch": [{"padding": 1}, 2]}, 4], [{"branch": [{"padding": 1}, 2]}, 4]),
        ([{"branch": {"padding": [1]}}], [{"branch": {"padding": [1]}}]),
        ({"branch": 1}, {"branch": 1}),
    ],
)
def test_a_bundle_s_windows_pad_both_sides_alike_until_version_3(parts: Any, today: Any) -> None:
    given = {"version": 3, "network": {"parts": parts}}
    before = copy.deepcopy(given)
    assert bundle(given) == {"version": 4, "network": {"parts": today}}
    assert given == before
    for other in ({**given, "version": 4}, [given], None):
        assert bundle(other) is other
