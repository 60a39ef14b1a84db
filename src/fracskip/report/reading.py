"""From a path to a record: which file, which schema, and what is wrong with it if it is neither."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fracskip import legacy
from fracskip.errors import DataError
from fracskip.files import require_regular_file
from fracskip.report.cascade_records import CASCADE_SCHEMA, CascadeRecord
from fracskip.report.records import (
    EVALUATION_SCHEMA,
    RUN_SCHEMA,
    SWEEP_SCHEMA,
    EvaluationRecord,
    RunRecord,
    SweepRecord,
)
from fracskip.text import visible

RECORD_NAME = "record.jsonl"
MAX_RECORD_BYTES = 64 << 20
_SHOWN_PROBLEMS = 5
_SHOWN_INPUT = 60
_ALLOWED = (
    f"allowed are a JSON file of schema {EVALUATION_SCHEMA!r}, {SWEEP_SCHEMA!r}, "
    f"{CASCADE_SCHEMA!r} or {RUN_SCHEMA!r}, a run's {RECORD_NAME}, and a folder that holds one"
)

Record = EvaluationRecord | SweepRecord | CascadeRecord | RunRecord
_DOCUMENTS: dict[str, type[Record]] = {
    EVALUATION_SCHEMA: EvaluationRecord,
    SWEEP_SCHEMA: SweepRecord,
    CASCADE_SCHEMA: CascadeRecord,
    RUN_SCHEMA: RunRecord,
}
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class RecordFile:
    """A record and the file it was read from.

    Attributes:
        name: The file's name; for a run's log with its folder's name before it.
        sha256: Digest of the file's bytes, in hexadecimal.
        record: What it holds.
    """

    name: str
    sha256: str
    record: Record


def load_record(path: str | Path) -> Record:
    """Reads the record of an evaluation, a sweep, a cascade or a run.

    Args:
        path: A JSON file, a run's `record.jsonl`, or the folder of a run. The log of a run that
            still goes on, or was killed, is read as far as it is complete.

    Returns:
        The record; `RunRecord.is_finished` tells whether a run has ended.

    Raises:
        DataError: naming the file, what is wrong with it, and what is allowed.
    """
    return read_record_file(path).record


def read_record_file(path: str | Path) -> RecordFile:
    """Reads a record together with the name and digest of its file.

    Raises:
        DataError: naming the file, what is wrong with it, and what is allowed.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike its namesake it never raises
        path /= RECORD_NAME
        if not path.is_file():
            raise DataError(f"{path.parent} holds no {RECORD_NAME}; {_ALLOWED}")
    content = _read_bytes(path)
    is_log = path.suffix == ".jsonl"
    record = _parse_log(content, path) if is_log else _parse_document(content, path)
    name = f"{path.resolve().parent.name}/{path.name}" if path.name == RECORD_NAME else path.name
    return RecordFile(visible(name), hashlib.sha256(content).hexdigest(), record)


def _read_bytes(path: Path) -> bytes:
    try:
        require_regular_file(path, "record", DataError)
        size = path.stat().st_size
        if size > MAX_RECORD_BYTES:
            raise DataError(
                f"{path} has {size} bytes, a record at most {MAX_RECORD_BYTES}; {_ALLOWED}"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"record {path} does not exist; {_ALLOWED}") from None
    except OSError as error:
        raise DataError(f"record {path} cannot be read: {error.strerror}; {_ALLOWED}") from None
    if not content.strip():
        raise DataError(f"{path} is empty; {_ALLOWED}")
    return content


def _decode(content: bytes) -> Any:
    """Decodes JSON; ValueError says why it is none."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parse_document(content: bytes, path: Path) -> Record:
    try:
        tree = _decode(content)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); {_ALLOWED}") from None
    tree = legacy.record(tree)
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if isinstance(schema, str) and schema in _DOCUMENTS:
        return _validate(_DOCUMENTS[schema], tree, path)
    given = f"schema {_shortened(schema)}" if isinstance(tree, dict) else "no JSON object"
    raise DataError(f"{path} has {given}; {_ALLOWED}")


def _parse_log(content: bytes, path: Path) -> RunRecord:
    """Folds a run's events into its record; a last line cut short is left out."""
    events: list[dict[str, Any]] = []
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            event = _decode(line)
        except ValueError as error:
            if number == lines[-1][0]:
                break
            raise DataError(f"{path}, line {number} is not valid JSON ({error})") from None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise DataError(
                f"{path}, line {number} is no event: each line of a run's log is a JSON object "
                "with the key 'event'"
            )
        events.append(legacy.run_event(event))
    if not events or events[0]["event"] != "start":
        raise DataError(f"{path} does not begin with a complete 'start' event; {_ALLOWED}")

    start = events[0]
    end: dict[str, Any] = next((event for event in events if event["event"] == "end"), {})
    epochs: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] == "epoch":
            epochs[repr(event.get("stage")), repr(event.get("epoch"))] = event
    tree: dict[str, Any] = {"schema": RUN_SCHEMA, "epochs": list(epochs.values())}
    tree |= {key: start[key] for key in ("name", "recipe", "versions", "device") if key in start}
    tree |= {key: end[key] for key in ("test", "seconds") if key in end}
    if end and end.get("seconds") is None:
        raise DataError(f"{path}: its 'end' event lacks 'seconds', the time the run took")
    return _validate(RunRecord, tree, path)


def _validate(model: type[ModelT], tree: dict[str, Any], path: Path) -> ModelT:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise DataError(f"{path} is a malformed record: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """Says in one line what pydantic found wrong: key, reason, and what was given."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(map(str, item["loc"])) or "record"
        if item["type"] == "missing":
            parts.append(f"{key} is missing")
        elif item["type"] == "value_error" and isinstance(item["input"], dict | BaseModel):
            parts.append(f"{key}: {item['ctx']['error']}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            parts.append(f"{key}: {reason} (given: {_shortened(item['input'])})")
    hidden = len(parts) - _SHOWN_PROBLEMS
    more = [f"and {hidden} more"] if hidden > 0 else []
    return "; ".join([*parts[:_SHOWN_PROBLEMS], *more])


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_INPUT else f"{text[: _SHOWN_INPUT - 1]}…"
