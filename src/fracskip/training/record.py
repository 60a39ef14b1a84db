"""A run's record: one JSON line per event, and the whole as one JSON file at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fracskip.errors import CheckpointError
from fracskip.files import write_atomically

SCHEMA = "fracskip.run/1"


class Record:
    """`record.jsonl` of a run folder.

    A resumed run calls `rewind` first: epochs after the checkpoint it resumes from are told again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "record.jsonl"

    def events(self) -> list[dict[str, Any]]:
        """All complete lines; a line that a crash cut short is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def append(self, event: dict[str, Any]) -> None:
        """Adds an event.

        Raises:
            CheckpointError: if the disk is full or the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written ({error.strerror or error}): free some space, "
                "then resume"
            ) from error

    def rewind(self, epochs: int) -> None:
        """Keeps the start and the first so many epochs."""
        events = self.events()
        kept = [event for event in events if event["event"] == "start"][:1]
        kept += [event for event in events if event["event"] == "epoch"][:epochs]
        text = "".join(json.dumps(event) + "\n" for event in kept)
        write_atomically(self.path, text.encode())

    def write_summary(self, path: Path) -> None:
        """Writes the whole run as one JSON file, schema `fracskip.run/1`."""
        events = self.events()
        start = next(event for event in events if event["event"] == "start")
        end = next((event for event in events if event["event"] == "end"), {})
        summary = {
            "schema": SCHEMA,
            **{key: start[key] for key in ("name", "recipe", "versions", "device")},
            # A run that an older version started has said nothing of its data.
            "data": {**start.get("data", {}), "skipped_test": end.get("skipped", [])},
            "notes": start.get("notes", []),
            "epochs": [event for event in events if event["event"] == "epoch"],
            **{key: end.get(key) for key in ("lean", "curve", "cascade", "cascade_gain", "norms")},
            "test": end.get("test"),
            "seconds": end.get("seconds"),
        }
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
