"""The engine for aarch64: built here, run on processors that QEMU emulates, held to this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cross_build import SETS, cross_build, emulated, missing_cross_tools
from support.disassembly import disassembled, disassembler, loops
from support.driver_answers import DriverAnswers
from support.native_build import build, run, write_seeds
from support.random_bundle import random_bundle

pytestmark = pytest.mark.skipif(
    bool(missing_cross_tools()), reason=missing_cross_tools() or "never"
)

# Integers from the first convolution to the last: answers are the same to the bit.
INTEGERS: dict[str, Any] = {"options": ("skip", 2, 3, 4, 6, 7, 8), "first": 8, "ends": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"blocks": "bottleneck", "widths": (8, 12)},
    "many channels": {"widths": (120, 136), "depth": 1, "image": (8, 8)},
    "odd": {"image": (13, 9), "widths": (5, 7, 11), "depth": 1},
    "stem7": {"image": (29, 34), "stem7": True, "channels": 1, "widths": (6, 10)},
    "uneven": {"uneven": True, "stem7": True, "image": (30, 27), "widths": (16, 24)},
}
KERNELS = {
    "neon": {
        *("fp32_direct", "fp32_winograd", "int8_direct", "int8_narrow", "int8_winograd"),
        *("int8_winograd_4x2", "int8_winograd_4x2_wide"),
    },
    "neon_dotprod": {"fp32_direct", "fp32_winograd", "int8_direct"},
    "neon_i8mm": {"fp32_direct", "fp32_winograd", "int8_direct"},
}


@pytest.fixture(scope="module")
def tests() -> Path:
    return cross_build("native_answers", "native_kernels") / "native" / "tests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, keywords in SHAPES.items():
        (folder / f"integers {name}.fsk").write_bytes(random_bundle(11, **INTEGERS, **keywords))
    return write_seeds(folder)


@pytest.mark.parametrize("cpu", ["cortex-a72", "max"])
def test_arm_kernels_give_what_plain_loops_give(cpu: str, tests: Path) -> None:
    printed = emulated(cpu, [str(tests / "kernels"), "20"])
    absent = {line.split(":")[0] for line in printed.splitlines() if "not on this CPU" in line}
    assert not absent & set(SETS[cpu])
    assert " 0 failures" in printed


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76", "max"])
def test_arm_gives_the_answers_of_this_processor(cpu: str, tests: Path, folder: Path) -> None:
    here = build("address", "native_answers") / "tests" / "answers"
    wanted = DriverAnswers.of(run([str(here), str(folder), "4"]))
    found = DriverAnswers.of(emulated(cpu, [str(tests / "answers"), str(folder), "4"]))
    assert (*found.kernels,) == SETS[cpu]
    assert found.best == SETS[cpu][-1]
    names = sorted(path.stem for path in folder.glob("*.fsk"))
    for isa in SETS[cpu]:
        if isa in KERNELS:
            assert found.kernels[isa] == {f"{isa}_{name}" for name in KERNELS[isa]}
        equal = total = 0
        for key, logits in found.logits[isa].items():
            bundle, kind, _ = key
            decisions = found.decisions[isa][key], wanted.decisions["scalar"][key]
            equal += int((decisions[0] == decisions[1]).sum())
            total += decisions[0].size
            reference = wanted.logits["scalar"][key]
            if names[bundle].startswith("integers"):
                assert logits.tobytes() == reference.tobytes()
            elif kind == "forced":  # float sums in another order, and levels on an edge
                assert np.abs(logits - reference).max() <= 0.02 * np.abs(reference).max()
        assert equal >= 0.999 * total > 0


# Of each kernel's loop: what multiplies, how many products an instruction, what else is there and
# what is not, and the most instructions that a product may cost: a quarter more than GCC 12 takes,
# because accumulators in memory would cost half as much again.
LOOPS = [
    ("direct_neon", "smull2?|smlal2?", 8, "sadalp", "fmla", 0.33),
    ("direct_neon", "smlal2?", 8, "dup", "sadalp", 0.24),
    ("direct_neon", "fmla", 4, "fmla", "smlal", 0.43),
    ("winograd_neon", "smlal2?", 4, "smlal", "sadalp", 0.37),
    ("winograd_neon", "fmla", 4, "fmla", "smlal", 0.43),
    ("winograd_bytes_neon", "smlal2?", 8, "dup", "fmla", 0.22),
    ("direct_dotprod", "sdot", 16, "sdot", "smlal", 0.112),
    ("direct_i8mm", "usmmla", 32, "usmmla", "sdot", 0.07),
]


@pytest.mark.skipif(disassembler() is None, reason="no objdump that knows aarch64")
def test_loops_multiply_by_the_instructions_of_their_set(tests: Path) -> None:
    objects = {path.name.partition(".")[0]: path for path in tests.parents[1].rglob("*.o")}
    text = {name: disassembled(path) for name, path in objects.items() if "core" in str(path)}
    for name, multiplies, products, needed, absent, most in LOOPS:
        costs = [
            len(loop.lines) / (products * loop.count(multiplies))
            for loop in loops(text[name])
            if loop.count(multiplies) >= 32 and loop.count(needed) and not loop.count(absent)
        ]
        assert min(costs, default=1.0) <= most, (name, multiplies)
    # The module loads on any processor: what some lack lies in the files that are named for it.
    for name, code in text.items():
        assert ("dot\t" in code) == name.endswith("_dotprod"), name
        assert ("mmla\t" in code) == name.endswith("_i8mm"), name
