"""`tools/attack.py` in short: hostile files are read or refused, and what is neither is noticed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "attack.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux counts it")


def attack(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


COUNTS = {"image": 150, "bundle": 100, "checkpoint": 30}


def test_hostile_files_are_read_or_refused(tmp_path: Path) -> None:
    options = [word for kind, count in COUNTS.items() for word in (f"--{kind}s", count)]
    done = attack(*options, "--kills", 0, "--json", tmp_path / "record.json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    record: dict[str, Any] = json.loads((tmp_path / "record.json").read_text())
    assert record["failures"] == []
    for kind, count in COUNTS.items():
        found = record[kind]
        refused = sum(found["refused"].values())
        assert found["inputs"] == count == found["read"] + refused
        assert found["read"] >= 5
        assert refused >= 15
        assert kind == "image" or found["digests_repaired"] > count / 2


FAULTS = [
    "read",
    "ZeroDivisionError",
    "SIGABRT",
    "SIGPROF",
    r"10\d\d MiB of memory",
    "MemoryError",
    "it said b'words'",
    "it reached for .*socket",
    "it reached for .*open .*words",
    "it reached for .*os.mkdir .*made",
    "a message of 20 characters in 2 lines",
    "read",  # those that died have been replaced
]


def test_what_is_neither_read_nor_refused_is_noticed() -> None:
    done = attack("--only", f"fault:0-{len(FAULTS)}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["seed"] for row in rows] == list(range(len(FAULTS)))
    for row, words in zip(rows, FAULTS, strict=True):
        assert re.search(words, row.get("reason", row["outcome"])), row
