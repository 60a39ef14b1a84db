"""What native/tests/answers.cpp prints, taken apart and compared."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, str, int]  # bundle, kind, and which of its networks


@dataclass
class DriverAnswers:
    """Decisions and logits of every instruction set, its kernels, and the one that is taken."""

    decisions: dict[str, dict[Key, NDArray[np.uint8]]] = field(default_factory=dict)
    logits: dict[str, dict[Key, NDArray[np.float32]]] = field(default_factory=dict)
    kernels: dict[str, set[str]] = field(default_factory=dict)
    best: str = ""

    @classmethod
    def of(cls, text: str) -> DriverAnswers:
        """Takes the driver's output apart."""
        answers = cls()
        for line in text.splitlines():
            words = line.split()
            if words[0] == "best":
                answers.best = words[1]
            elif words[0] == "kernels":
                answers.kernels[words[1]] = set(words[2:])
            else:
                bundle, isa, kind, decisions, logits = words
                taken = answers.decisions.setdefault(isa, {})
                key = (int(bundle), kind, sum(k[:2] == (int(bundle), kind) for k in taken))
                taken[key] = np.frombuffer(bytes.fromhex(decisions.rstrip("-")), np.uint8)
                bits = np.frombuffer(bytes.fromhex(logits), ">u4").astype(np.uint32)
                answers.logits.setdefault(isa, {})[key] = bits.view(np.float32)
        return answers
