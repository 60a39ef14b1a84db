"""The engine for aarch64 at length, on processors that QEMU emulates.

Kernels, failed allocations and threads on each of them, and damaged bundles; then how many
instructions an image takes in a network of ResNet-20's shape:

    PYTHONPATH=tests python tools/check_arm.py
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from support.cross_build import SETS, cross_build, emulated, emulator, missing_cross_tools
from support.native_build import compiler, write_seeds
from support.random_bundle import random_bundle

ROOT = Path(__file__).parents[1]
OPTIONS = ("skip", 2, 4, 6, 8, "full")
MUTANTS = 2000


def main() -> None:
    """Stops at the first driver that fails, with its report."""
    if missing := missing_cross_tools():
        raise SystemExit(missing)
    names = ("answers", "faults", "kernels", "threads")
    built = cross_build(*(f"native_{name}" for name in names), "fuzz_bundle") / "native"
    with tempfile.TemporaryDirectory() as folder:
        seeds = str(write_seeds(Path(folder) / "seeds"))
        for cpu in SETS:
            print(cpu, flush=True)
            for name, *arguments in (
                ("kernels", "300"),
                ("faults", seeds),
                ("threads", seeds, "2"),
            ):
                print(emulated(cpu, [str(built / "tests" / name), *arguments]), end="", flush=True)
        fuzz = [str(built / "fuzz" / "fuzz_bundle"), "--seeds", seeds, "--count", str(MUTANTS)]
        print(emulated("max", fuzz), end="", flush=True)
        count_instructions(built / "tests" / "answers", Path(folder))


def count_instructions(driver: Path, folder: Path) -> None:
    """Prints millions of instructions an image, for each set and option."""
    cxx, qemu = compiler(), emulator()
    assert cxx is not None
    assert qemu is not None
    plugin = folder / "count.so"
    source = ROOT / "native" / "tests" / "count_plugin.cpp"
    subprocess.run([cxx, "-shared", "-fPIC", "-o", str(plugin), str(source)], check=True)
    network = folder / "network"
    network.mkdir()
    shape = {"widths": (16, 32, 64), "depth": 3, "image": (32, 32), "classes": 10}
    bundle = random_bundle(1, options=OPTIONS, first=8, ends=8, **shape)
    (network / "network.fsk").write_bytes(bundle)

    def counted(images: int, isa: str, option: int) -> int:
        command = [qemu, "-cpu", "max", "-plugin", str(plugin), "-d", "plugin", str(driver)]
        command += [str(network), str(images), isa, str(option)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        match = re.search(r"instructions (\d+)", done.stderr)
        assert match is not None
        return int(match[1])

    for isa in SETS["max"]:
        found = []
        for index, option in enumerate(OPTIONS[1:], 1):
            each = (counted(3, isa, index) - counted(1, isa, index)) / 2
            found.append(f"{option}: {each / 1e6:.2f} M")
        print(isa, *found, flush=True)


if __name__ == "__main__":
    main()
