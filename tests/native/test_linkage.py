"""What the object files of other instruction sets leave to the linker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from support.cross_build import cross_definitions, missing_cross_tools
from support.native_build import configure, missing_tools

NM = shutil.which("nm")

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) or NM is None, reason="no compiler, cmake or nm"
)


@pytest.mark.parametrize(
    "cross",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                bool(missing_cross_tools()), reason=missing_cross_tools() or "never"
            ),
        ),
    ],
    ids=["here", "aarch64"],
)
def test_instruction_sets_define_nothing_that_files_could_share(
    cross: bool, tmp_path: Path
) -> None:
    """Of a weak symbol the linker keeps one file's copy for all: perhaps one in AVX-512.

    Compiled without optimisation, so that every function that may have a copy has one.
    """
    folder = configure("plain", tmp_path, cross_definitions() if cross else ())
    commands = json.loads((folder / "compile_commands.json").read_text())
    entries = [entry for entry in commands if re.search("/kernels/(x86|arm)/", entry["file"])]
    shared = {}
    for entry in entries:
        source = Path(entry["file"])
        command = [word for word in shlex.split(entry["command"]) if not word.startswith("-O")]
        command[command.index("-o") + 1] = str(tmp_path / f"{source.stem}.o")
        subprocess.run([*command, "-O0"], cwd=entry["directory"], check=True)
        symbols = subprocess.run(
            [str(NM), "--defined-only", "--demangle", command[command.index("-o") + 1]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        weak = [line.split(maxsplit=2) for line in symbols.splitlines()]
        weak = [row[2] for row in weak if row[1] in "WVu" and not row[2].startswith("DW.ref.")]
        if weak:
            shared[source.name] = weak
    assert shared == {}
    words = commands[0]["command"]
    x86 = {"avx2", "avx512"} if "-DFRACSKIP_X86" in words else set()
    # Of those that compilers of today know, none is left out.
    flags = ["-mamx-tile", "-mamx-int8", "-mamx-bf16", "-fsyntax-only", "-xc++", "/dev/null"]
    if x86 and not subprocess.run([shlex.split(words)[0], *flags], capture_output=True).returncode:
        x86.add("amx")
    arm = {"neon", "dotprod", "i8mm"} if "-DFRACSKIP_ARM" in words else set()
    assert {Path(entry["file"]).stem.rpartition("_")[2] for entry in entries} >= x86 | arm
    assert arm or not cross
