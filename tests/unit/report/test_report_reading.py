"""Records: the good are read, the bad are told apart and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import escalated, make_sweep

from fracskip.errors import DataError
from fracskip.report import load_record
from fracskip.report.reading import read_record_file
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord

Tree = dict[str, Any]
Save = Callable[..., Path]


def change(tree: Tree, where: str, value: Any) -> Tree:
    """Sets the value at a dotted path, or removes the key if the value is ...."""
    node: Any = tree
    *path, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    for key in path:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return tree


def test_evaluation_is_read(evaluation: Tree, save: Save) -> None:
    record = load_record(save(evaluation))
    assert isinstance(record, EvaluationRecord)
    assert (record.images, record.accuracy, record.cp) == (10_000, 0.925, 0.05)
    assert record.digest == evaluation["checkpoint_digest"]
    assert len(record.blocks) == len(record.examples.cheapest[0].allocation) == 17
    assert record.option_labels == ("skip", "8", "16", "full")


def test_path_may_be_text(evaluation: Tree, save: Save) -> None:
    assert load_record(str(save(evaluation))) == load_record(save(evaluation))


def test_only_the_core_is_required(evaluation: Tree, save: Save) -> None:
    for key in ("blocks", "classes", "static", "examples", "decision_entropy_bits"):
        del evaluation[key]
    record = load_record(save(evaluation))
    assert isinstance(record, EvaluationRecord)
    assert record.blocks == record.classes == record.static == ()


def test_unknown_keys_are_ignored(evaluation: Tree, save: Save) -> None:
    assert load_record(save(evaluation | {"later": 1})) == load_record(save(evaluation))


def test_shares_ascend_whatever_their_order(evaluation: Tree, save: Save) -> None:
    evaluation["option_share"] = {"full": 0.1, "8": 0.4, "skip": 0.5}
    record = load_record(save(evaluation))
    assert isinstance(record, EvaluationRecord)
    assert list(record.option_share) == ["skip", "8", "full"]


def test_escalation_is_read(evaluation: Tree, save: Save) -> None:
    tree = escalated(evaluation, 0.25)
    record = load_record(save(tree))
    assert isinstance(record, EvaluationRecord)
    assert record.escalation_rate == 0.25
    dearest = record.examples.dearest[0]
    assert dearest.first_allocation == tuple(tree["examples"]["dearest"][0]["first_allocation"])
    assert dearest.first_allocation != dearest.allocation
    assert dearest.allocations == (dearest.first_allocation, dearest.allocation)
    cheapest = record.examples.cheapest[0]
    assert (cheapest.first_allocation, cheapest.allocations) == (None, (cheapest.allocation,))


def test_older_records_know_one_look(evaluation: Tree, save: Save) -> None:
    assert "escalation_rate" not in evaluation
    assert "first_allocation" not in evaluation["examples"]["dearest"][0]
    record = load_record(save(evaluation))
    assert isinstance(record, EvaluationRecord)
    assert record.escalation_rate == 0.0
    assert record.examples.dearest[0].first_allocation is None
    sweep = load_record(save(make_sweep(), "sweep.json"))
    assert isinstance(sweep, SweepRecord)
    assert [point.escalation_rate for point in sweep.points] == [0.0] * 5


def test_two_members_may_cost_more_than_the_whole_network(evaluation: Tree, save: Save) -> None:
    tree = escalated(evaluation, 0.25)
    tree["examples"]["dearest"][0] |= {"cp": 1.5, "first_allocation": ["full"] * 17}
    tree["classes"][0]["cp"] = 1.3
    record = load_record(save(change(tree, "cp", 1.2)))
    assert isinstance(record, EvaluationRecord)
    assert (record.cp, record.classes[0].cp, record.examples.dearest[0].cp) == (1.2, 1.3, 1.5)


def test_rounding_above_one_is_one(evaluation: Tree, save: Save) -> None:
    record = load_record(save(change(evaluation, "accuracy", 1.0000001)))
    assert isinstance(record, EvaluationRecord)
    assert record.accuracy == 1.0


BAD = [
    ("accuracy", ..., "accuracy is missing"),
    ("checkpoint.model", ..., "checkpoint.model is missing"),
    ("blocks.3.option_share", ..., "blocks.3.option_share is missing"),
    ("accuracy", float("nan"), "accuracy: Input should be a finite number"),
    ("cp", float("inf"), "cp: Input should be a finite number"),
    ("cp", -0.1, "cp: Input should be greater than or equal to 0"),
    ("accuracy", 1.5, "accuracy: a share of at most 1"),
    ("accuracy", "0.9", "accuracy: Input should be a valid number"),
    ("accuracy", True, "accuracy: Input should be a valid number"),
    ("images", 0, "images: Input should be greater than or equal to 1"),
    ("images", 10.0, "images: Input should be a valid integer"),
    ("classes.0.name", "", "classes.0.name"),
    ("option_share", {"skip": 0.5, "8": 0.4}, "shares must sum to 1, these sum to 0.9"),
    ("option_share", {"skip": 0.5, "9bit": 0.5}, "option '9bit' is unknown"),
    ("option_share", {"skip": 0.5, "4": 0.5}, "'4' is not among the checkpoint's options"),
    ("checkpoint.options", ["full", "skip"], "must ascend"),
    (
        "examples.cheapest.0.allocation",
        ["8"] * 16,
        "every allocation needs one option per gated block, 17",
    ),
    ("examples.dearest.0.allocation", [], "examples.dearest.0.allocation"),
    ("examples.cheapest.0.allocation", ["4"] * 17, "'4' is not among"),
    ("examples.cheapest.0.png", "no base64!", "base64"),
    ("examples.cheapest.0.png", "aGVsbG8=", "a PNG image"),
    ("checkpoint_digest", "sha256:other", "must be the same"),
    ("versions", {"torch": 2}, "versions.torch"),
    ("blocks", 17, "blocks"),
]


BAD_LOOKS = [
    ("escalation_rate", 1.5, "escalation_rate: a share of at most 1"),
    ("escalation_rate", None, "escalation_rate: Input should be a valid number"),
    (
        "examples.dearest.0.first_allocation",
        ["8"] * 16,
        "every allocation needs one option per gated block",
    ),
    ("examples.dearest.0.first_allocation", [], "examples.dearest.0.first_allocation"),
    ("examples.dearest.0.first_allocation", ["4"] * 17, "'4' is not among"),
    ("examples.dearest.0.first_allocation", ["9bit"] * 17, "option '9bit' is unknown"),
    ("examples.dearest.0.cp", 2.5, "examples.dearest.0.cp: a share of at most 2"),
    (
        "examples.cheapest.0.cp",
        1.5,
        "examples.cheapest.0: cp may be at most 1, with an escalation rate of 0",
    ),
    ("cp", 1.3, "cp may be at most 1.25, with an escalation rate of 0.25; it is 1.3"),
    ("classes.0.cp", 2.1, "classes.0.cp: a share of at most 2"),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD_LOOKS)
def test_malformed_escalation(
    evaluation: Tree, save: Save, where: str, value: Any, message: str
) -> None:
    path = save(change(escalated(evaluation, 0.25), where, value))
    with pytest.raises(DataError) as caught:
        load_record(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("where", ["cp", "classes.0.cp", "examples.dearest.0.cp"])
def test_one_look_costs_the_whole_network_at_most(evaluation: Tree, save: Save, where: str) -> None:
    with pytest.raises(DataError, match="cp may be at most 1, with an escalation rate of 0"):
        load_record(save(change(evaluation, where, 1.01)))
    load_record(save(change(evaluation, where, 1.0000001)))


@pytest.mark.parametrize(("where", "value", "message"), BAD)
def test_malformed_evaluation(
    evaluation: Tree, save: Save, where: str, value: Any, message: str
) -> None:
    path = save(change(evaluation, where, value))
    with pytest.raises(DataError) as caught:
        load_record(path)
    assert message in str(caught.value)
    assert "evaluation.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_stay_short(evaluation: Tree, save: Save) -> None:
    for block in evaluation["blocks"]:
        block["option_share"] = {"skip": 9.0}
    with pytest.raises(DataError, match="and 12 more") as caught:
        load_record(save(evaluation))
    assert len(str(caught.value)) < 1000


NOT_RECORDS = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"accuracy: 0.9", "not valid JSON"),
    (b'{"schema": "fracskip.evaluation/2", "chec', "not valid JSON"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b"[]", "no JSON object"),
    (b"{}", "schema None"),
    (b'{"schema": "fracskip.evaluation/3"}', "schema 'fracskip.evaluation/3'"),
    (b'{"schema": ["fracskip.evaluation/2"]}', "schema ["),
]


@pytest.mark.parametrize(("content", "message"), NOT_RECORDS)
def test_foreign_files(save: Save, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_record(save(content))
    text = str(caught.value)
    assert message in text
    assert "evaluation.json" in text
    schemas = "'fracskip.evaluation/2', 'fracskip.sweep/2', 'fracskip.cascade/1' or"
    assert f"{schemas} 'fracskip.run/2'" in text


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        load_record(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"holds no record\.jsonl"):
        load_record(tmp_path)


def test_run_folder_log_and_summary_agree(run_events: list[Tree], save: Save) -> None:
    log = save(run_events, "r38/record.jsonl")
    summary = {key: run_events[0][key] for key in ("name", "recipe", "versions", "device")}
    summary |= {"schema": "fracskip.run/2", "epochs": run_events[1:-1]}
    summary |= {key: run_events[-1][key] for key in ("test", "seconds")}
    record = load_record(log)
    assert isinstance(record, RunRecord)
    assert record == load_record(log.parent) == load_record(save(summary, "run.json"))
    assert record.is_finished
    assert [epoch.stage for epoch in record.epochs] == ["backbone"] * 30 + ["gates"] * 2 + [
        "joint"
    ] * 30
    assert read_record_file(log.parent).name == "r38/record.jsonl"


def test_run_that_goes_on(run_events: list[Tree], save: Save) -> None:
    whole = b"".join(json.dumps(event).encode() + b"\n" for event in run_events[:5])
    for tail in (b"", b'{"event": "epo', b'{"event": "\xc3', b"\n\n"):
        record = load_record(save(whole + tail, "record.jsonl"))
        assert isinstance(record, RunRecord)
        assert len(record.epochs) == 4
        assert not record.is_finished


def test_unfinished_summary(run_events: list[Tree], save: Save) -> None:
    summary = {"schema": "fracskip.run/2", "name": "r", "epochs": [], "test": None}
    record = load_record(save(summary | {"seconds": None}, "run.json"))
    assert isinstance(record, RunRecord)
    assert not record.is_finished


def test_an_epoch_told_again_counts_once(run_events: list[Tree], save: Save) -> None:
    again = run_events[2] | {"loss": 7.5}
    record = load_record(save([*run_events[:4], again, {"event": "note"}], "record.jsonl"))
    assert isinstance(record, RunRecord)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert record.epochs[1].loss == 7.5


BAD_LOGS = [
    (b'{"event": "start", "name": "r"}\n{"ev\n{"event": "end", "seconds": 1}\n', "line 2"),
    (b'{"event": "start", "name": "r"}\n[]\n', "line 2 is no event"),
    (b'{"event": "start", "name": "r"}\n{"loss": 1}\n', "line 2 is no event"),
    (b'{"event": "epoch"}\n', "does not begin with a complete 'start' event"),
    (b'{"event": "sta', "does not begin with a complete 'start' event"),
    (b'{"event": "start"}\n', "name is missing"),
    (b'{"event": "start", "name": "r"}\n{"event": "end"}\n', "lacks 'seconds'"),
    (
        b'{"event": "start", "name": "r"}\n{"event": "epoch", "stage": "warm", "epoch": 1}\n',
        "epochs.0.stage",
    ),
    (
        b'{"event":"start","name":"r"}\n{"event":"epoch","stage":"joint","epoch":1,"loss":NaN}\n',
        "epochs.0.loss: Input should be a finite number",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD_LOGS)
def test_malformed_logs(save: Save, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_record(save(content, "record.jsonl"))
    assert message in str(caught.value)
    assert "record.jsonl" in str(caught.value)


def test_malformed_test_in_a_run(run_events: list[Tree], save: Save) -> None:
    del run_events[-1]["test"]["images"]
    with pytest.raises(DataError, match=r"test\.images is missing"):
        load_record(save(run_events, "record.jsonl"))
