"""Records to read and to spoil."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_records import Tree, make_evaluation, make_events


@pytest.fixture
def evaluation() -> Tree:
    return make_evaluation(examples=2)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a record and returns its path."""

    def write(tree: object, name: str = "evaluation.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(tree, bytes):
            path.write_bytes(tree)
        elif name.endswith(".jsonl") and isinstance(tree, list):
            path.write_text("".join(json.dumps(event) + "\n" for event in tree), encoding="utf-8")
        else:
            path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_events(evaluation: Tree) -> list[Tree]:
    return make_events(evaluation)
