import json
from pathlib import Path

import pytest

from fracskip.errors import CheckpointError
from fracskip.training.record import Record

START = {"event": "start", "name": "x", "recipe": {}, "versions": {}, "device": "d"}


def epoch(number: int, stage: str = "joint") -> dict[str, object]:
    return {"event": "epoch", "stage": stage, "epoch": number}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path)
    for event in (START, epoch(1), epoch(2), epoch(3)):
        record.append(event)
    return record


def test_one_line_an_event(record: Record) -> None:
    lines = record.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [START, epoch(1), epoch(2), epoch(3)]
    assert record.events() == [START, epoch(1), epoch(2), epoch(3)]


def test_no_record_has_no_events(tmp_path: Path) -> None:
    assert Record(tmp_path).events() == []


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_rewinding_keeps_the_start_and_so_many_epochs(record: Record, kept: int) -> None:
    record.append({"event": "end", "test": {}, "seconds": 1.0})
    record.rewind(kept)
    assert record.events() == [START, epoch(1), epoch(2), epoch(3)][: 1 + kept]
    record.append(epoch(kept + 1))
    assert record.events()[-1] == epoch(kept + 1)


def test_a_line_cut_short_by_a_crash_is_left_out(record: Record) -> None:
    whole = record.path.read_bytes()
    record.path.write_bytes(whole[:-9])
    assert record.events() == [START, epoch(1), epoch(2)]
    record.rewind(2)
    record.append(epoch(3))
    assert record.path.read_bytes() == whole


def test_the_summary_is_the_whole_run(record: Record, tmp_path: Path) -> None:
    end = {
        "lean": -1.5,
        "curve": [],
        "cascade": [],
        "cascade_gain": None,
        "norms": "options",
        "test": {"accuracy": 1},
        "seconds": 2.5,
    }
    record.append({"event": "end", **end})
    record.write_summary(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "schema": "fracskip.run/1",
        "name": "x",
        "recipe": {},
        "versions": {},
        "device": "d",
        "data": {"skipped_test": []},
        "notes": [],
        "epochs": [epoch(1), epoch(2), epoch(3)],
        **end,
    }


def test_a_record_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    record = Record(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"could not be written .No such file.*then resume"):
        record.append(START)
