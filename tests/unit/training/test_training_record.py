import json
import os
from pathlib import Path

import pytest

from fracskip.errors import CheckpointError
from fracskip.training.record import Record, read_summary

START = {"event": "start", "name": "x", "recipe": {}, "versions": {}, "device": "d"}


OTHER = {**START, "name": "made anew"}


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
    assert record.rewind(OTHER, ["backbone"], "joint", kept) == kept
    assert record.events() == [START, epoch(1), epoch(2), epoch(3)][: 1 + kept]
    record.append(epoch(kept + 1))
    assert record.events()[-1] == epoch(kept + 1)


def test_a_line_cut_short_by_a_crash_is_left_out(record: Record) -> None:
    whole = record.path.read_bytes()
    record.path.write_bytes(whole[:-9])
    assert record.events() == [START, epoch(1), epoch(2)]
    assert record.rewind(OTHER, [], "joint", 2) == 2
    record.append(epoch(3))
    assert record.path.read_bytes() == whole


DAMAGES = {
    "a line": (lambda lines: [*lines[:2], b"\xff" + lines[2], *lines[3:]], START, [1, 3]),
    "no event": (lambda lines: [lines[0], b"[1]", b'{"a": 1}', b"7", *lines[1:]], START, [1, 2, 3]),
    "told twice": (lambda lines: [*lines[:3], *lines[2:]], START, [1, 2, 3]),
    "the start": (lambda lines: lines[1:], OTHER, [1, 2, 3]),
    "all": (lambda lines: [], OTHER, []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_left_of_a_damaged_record_is_kept(record: Record, damage: str) -> None:
    spoil, start, left = DAMAGES[damage]
    record.path.write_bytes(b"\n".join(spoil(record.path.read_bytes().split(b"\n"))))
    record.append(epoch(4))  # after the place that is gone back to
    assert record.rewind(OTHER, [], "joint", 3) == len(left)
    assert record.events() == [start, *map(epoch, left)]


def test_a_lost_record_is_begun_anew(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.rewind(OTHER, [], "joint", 3) == 0
    assert record.events() == [OTHER]


def test_an_event_is_on_the_disk(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(record.path.read_bytes()))
    record.append(epoch(4))
    assert synced == [record.path.read_bytes()]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"schema": "other"}', b"\xff"])
def test_a_damaged_summary_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    assert read_summary(tmp_path / "run.json") is None


def test_the_summary_is_the_whole_run(record: Record, tmp_path: Path) -> None:
    end = {
        "operating_points": {"multiplier": 1.5},
        "cascade_gain": None,
        "norms": "options",
        "test": {"accuracy": 1},
        "seconds": 2.5,
    }
    record.append({"event": "end", "notes": ["a loss"], **end})
    record.write_summary(tmp_path / "run.json")
    assert read_summary(tmp_path / "run.json") == {
        "schema": "fracskip.run/2",
        "name": "x",
        "recipe": {},
        "versions": {},
        "device": "d",
        "data": {"skipped_test": []},
        "notes": ["a loss"],
        "epochs": [epoch(1), epoch(2), epoch(3)],
        **end,
    }


def test_a_record_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    record = Record(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"could not be written .No such file.*then resume"):
        record.append(START)
