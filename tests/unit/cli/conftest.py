"""The command line in this process, and in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fracskip.cli import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a user's mistake gives: no more, no less, and nothing else."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert self.err.endswith("\n")
        assert lines[0].startswith("fracskip"), lines
        assert ": error: " in lines[0]
        return lines[0].split(": error: ", 1)[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the working directory, and read a cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FRACSKIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def fracskip(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def python() -> Callable[..., Answer]:
    """Runs a script in a process of its own."""

    def run(script: str, *words: object, **variables: str) -> Answer:
        found = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            timeout=120,
        )
        return Answer(found.returncode, found.stdout, found.stderr)

    return run


@pytest.fixture
def recipe(pictures: Path) -> Path:
    """Of a tiny run, r.toml in the working folder."""
    path = Path("r.toml")
    path.write_text(
        f'name = "tiny"\n[data]\nname = "folder:{pictures}"\nvalidation = 9\n'
        'image = { size = [8, 8] }\n[model]\nname = "resnet8"\n[backbone]\nepochs = 1\n'
    )
    return path
