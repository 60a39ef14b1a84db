"""What the page says, before it is a page."""

from typing import Any

import pytest
from synthetic_records import Tree, make_evaluation, make_events

from fracskip.report.reading import RecordFile
from fracskip.report.records import EvaluationRecord, RunRecord
from fracskip.report.view import Measured, Trained, by_data, measured, trained
from fracskip.report.wording import percent


def evaluation_source(**changes: Any) -> RecordFile:
    tree = make_evaluation(blocks=2, classes=("cat",), examples=1) | changes
    return RecordFile("evaluation.json", "0", EvaluationRecord.model_validate(tree))


def run_source(events: list[Tree], **changes: Any) -> RecordFile:
    tree = {"schema": "fracskip.run/2", "name": "r38", "device": "cpu"} | changes
    epochs = [event for event in events if event["event"] == "epoch"]
    return RecordFile("run.json", "1", RunRecord.model_validate(tree | {"epochs": epochs}))


def only(source: RecordFile) -> Measured:
    (item,) = measured([source])
    return item


def test_the_cheapest_static_network_that_is_as_accurate() -> None:
    statics = make_evaluation(blocks=1, examples=1)["static"]
    statics[1]["accuracy"] = 0.96
    item = only(evaluation_source(accuracy=0.95, static=statics))
    assert (
        "at least as accurate runs at 16 bits everywhere: 96.00% right at 25.0%" in item.comparison
    )


def test_no_static_network_is_as_accurate() -> None:
    item = only(evaluation_source(accuracy=0.95))
    assert "No static network on record is as accurate; the best runs in full" in item.comparison


def test_no_static_network_on_record() -> None:
    assert only(evaluation_source(static=[])).comparison.endswith("of the 32-bit network's BitOps.")


def test_escalated_images_are_told_with_the_cost() -> None:
    item = only(evaluation_source(escalation_rate=0.234))
    assert (
        "of the 32-bit network's BitOps. 23.4% of the images were escalated. The cheapest"
    ) in item.comparison
    assert item.steadiness.endswith("at least 95% of the executions.")
    for once in (only(evaluation_source()), only(evaluation_source(escalation_rate=0.0))):
        assert "escalated" not in once.comparison
        assert once.steadiness.endswith("at least 95% of the images.")


def test_columns_ascend_in_cost() -> None:
    item = only(evaluation_source())
    assert [column.title for column in item.columns] == [
        "Dynamic",
        "Static 8 bits",
        "Static 16 bits",
        "Static full",
    ]


def test_namesakes_are_told_apart_and_data_sets_kept_apart() -> None:
    other = evaluation_source(data={"name": "cifar100", "split": "test"})
    items = measured([evaluation_source(), other])
    assert [item.label for item in items] == ["bundled [1]", "bundled [2]"]
    assert [name for name, _ in by_data(items)] == ["cifar10 test", "cifar100 test"]


def test_a_run_and_its_evaluation_hold_one_result() -> None:
    trimmed = make_evaluation(blocks=2, classes=("cat",), examples=1) | {"examples": {}}
    run = run_source(make_events()[:3], test=trimmed | {"seconds": 99.0}, seconds=1.0)
    (item,) = measured([run, evaluation_source()])
    assert item.references == (1, 2)
    assert item.references_of("examples") == (2,)
    assert item.record.examples.cheapest


@pytest.mark.parametrize(
    "change", [{"accuracy": 0.5}, {"escalation_rate": 0.5}, {"checkpoint_digest": ""}]
)
def test_results_that_differ_are_two(change: Tree) -> None:
    tree = make_evaluation(blocks=2, classes=("cat",), examples=1)
    tree["checkpoint"]["digest"] = ""
    one = RecordFile("a.json", "0", EvaluationRecord.model_validate(tree))
    other = RecordFile("b.json", "1", EvaluationRecord.model_validate(tree | change))
    assert len(measured([one, other])) == 2


def test_steady_blocks_are_counted() -> None:
    blocks = make_evaluation(blocks=2, examples=1)["blocks"]
    blocks[0]["option_share"] = {"skip": 0.96, "8": 0.04}
    blocks[1]["option_share"] = {"skip": 0.5, "8": 0.5}
    item = only(evaluation_source(blocks=blocks))
    assert item.steadiness.startswith("In 1 of 2 gated blocks one option serves at least 95%")


def test_runs_in_words() -> None:
    events = make_events(joint=2)
    finished = Trained(run_source(events, seconds=5000).record, (1,))  # type: ignore[arg-type]
    assert finished.sentence == "Run r38 finished: 34 epochs in 1 h 23 min on cpu."
    assert finished.stages == "backbone 1 to 30, gates 31 to 32 and joint 33 to 34"
    (begun,) = trained([run_source(events[:2])])
    assert begun.sentence.startswith("Run r38 is unfinished: 1 epoch on record on cpu")
    assert begun.stages == "backbone 1"


def test_equal_runs_are_one() -> None:
    sources = [run_source(make_events()[:3]), run_source(make_events()[:3])]
    assert [item.references for item in trained(sources)] == [(1, 2)]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1e-9, "<0.1%"), (0.5, "50.0%"), (1 - 1e-9, ">99.9%"), (1.0, "100%")],
)
def test_nothing_and_all_are_not_the_same_as_nearly(share: float, text: str) -> None:
    assert percent(share) == text
