"""The innermost loops of an object file for aarch64, and what they spend on their products."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TOOLS = ("aarch64-linux-gnu-objdump", "llvm-objdump")
_LINE = re.compile(r"\s*([0-9a-f]+):\s+([a-z][\w.]*)\s*(.*)")
_JUMP = re.compile(r"(?:b|b\..*|cbn?z|tbn?z)$")
_TARGET = re.compile(r"\b(?:0x)?([0-9a-f]+) <")


def disassembler() -> str | None:
    """A program that knows aarch64, where there is one."""
    return next((found for name in _TOOLS if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop without another one in it."""

    function: str
    lines: tuple[tuple[str, str], ...]  # mnemonic, operands

    def count(self, pattern: str) -> int:
        """How many instructions are of such a name."""
        return sum(bool(re.fullmatch(pattern, name)) for name, _ in self.lines)


def disassembled(path: Path) -> str:
    """The text of an object file's code."""
    tool = disassembler()
    assert tool is not None
    command = [tool, "-d", "-C", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(text: str) -> list[Loop]:
    """Of all functions; a loop is what lies between a jump backwards and where it goes."""
    found = []
    for function in re.split(r"\n(?=[0-9a-f]+ <)", text):
        head, *body = function.splitlines() or [""]
        lines = [match.groups() for line in body if (match := _LINE.match(line))]
        places = {int(address, 16): place for place, (address, _, _) in enumerate(lines)}
        spans = []
        for place, (_, name, operands) in enumerate(lines):
            target = _TARGET.search(operands) if _JUMP.match(name) else None
            begin = places.get(int(target[1], 16)) if target else None
            if begin is not None and begin <= place:
                spans.append((begin, place))
        for begin, end in spans:
            if not any((begin, end) != (b, e) and begin <= b and e <= end for b, e in spans):
                found.append(Loop(head, tuple((n, o) for _, n, o in lines[begin : end + 1])))
    return found
