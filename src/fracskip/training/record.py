"""A run's record: one JSON line per event, and the whole as one JSON file at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fracskip import legacy
from fracskip.errors import CheckpointError
from fracskip.files import write_atomically

SCHEMA = "fracskip.run/2"


class Record:
    """`record.jsonl` of a run folder.

    A resumed run calls `rewind` first: epochs after its checkpoint are recorded again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "record.jsonl"

    def events(self) -> list[dict[str, Any]]:
        """All complete lines; one that a crash cut short, or that is damaged, is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                found.append(legacy.run_event(event))
        return found

    def append(self, event: dict[str, Any]) -> None:
        """Adds an event; it is on the disk when this returns.

        Raises:
            CheckpointError: if the disk is full or the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written ({error.strerror or error}): free some space, "
                "then resume"
            ) from error

    def rewind(self, start: dict[str, Any], before: Sequence[str], stage: str, epochs: int) -> int:
        """Keeps the start and the epochs up to a place.

        Args:
            start: In place of the start event, if that was lost.
            before: Stages of which all epochs are kept.
            stage: The stage after them.
            epochs: Its first so many epochs are kept.

        Returns:
            How many epochs were kept; fewer than there have been, if some were lost.
        """
        events = self.events()
        kept = {
            (event.get("stage"), event.get("epoch")): event
            for event in events
            if event["event"] == "epoch"
            and (
                event.get("stage") in before
                or (event.get("stage") == stage and event.get("epoch", 0) <= epochs)
            )
        }
        begun = next((event for event in events if event["event"] == "start"), start)
        text = "".join(json.dumps(event) + "\n" for event in (begun, *kept.values()))
        write_atomically(self.path, text.encode())
        return len(kept)

    def write_summary(self, path: Path) -> None:
        """Writes the whole run as one JSON file, schema `fracskip.run/2`."""
        events = self.events()
        start = next(event for event in events if event["event"] == "start")
        end = next((event for event in events if event["event"] == "end"), {})
        summary = {
            "schema": SCHEMA,
            **{key: start[key] for key in ("name", "recipe", "versions", "device")},
            # A run that an older version started has recorded nothing of its data.
            "data": {**start.get("data", {}), "skipped_test": end.get("skipped", [])},
            "notes": [*start.get("notes", []), *end.get("notes", [])],
            "epochs": [event for event in events if event["event"] == "epoch"],
            **{key: end.get(key) for key in ("operating_points", "cascade_gain", "norms")},
            "test": end.get("test"),
            "seconds": end.get("seconds"),
        }
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())


def read_summary(path: Path) -> dict[str, Any] | None:
    """What `write_summary` wrote; None if it is not there, or damaged."""
    try:
        tree = legacy.record(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
    whole = isinstance(tree, dict) and tree.get("schema") == SCHEMA and "recipe" in tree
    return tree if whole else None
