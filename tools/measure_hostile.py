"""Measures how long hostile files are read before they are refused, and what memory that takes.

    PYTHONPATH=tests python tools/measure_hostile.py --bytes 16e6 1.5e6

Every kind of file of `tests/support/hostile_files.py` is read in a process of its own, once it has
read a sound one: a bundle in Python and by the native engine, a checkpoint. Exits with 1 if a file
is accepted, or takes more than two seconds of processor time or 200 MB more than the sound one.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from support.hostile_files import HOSTILE_BUNDLES, HOSTILE_CHECKPOINTS, Hostile

MOST_SECONDS, MOST_MEGABYTES = 2.0, 200.0
KINDS: dict[str, dict[str, Hostile]] = {
    "bundle": HOSTILE_BUNDLES,
    "native": HOSTILE_BUNDLES,
    "checkpoint": HOSTILE_CHECKPOINTS,
}
READ = """
import re, sys, time
from pathlib import Path
if sys.argv[1] == "checkpoint":
    from fracskip.checkpoint import load as read
elif sys.argv[1] == "bundle":
    from fracskip.runtime.bundle import read_bundle as read
else:
    from fracskip.runtime import _native, bundle
    def read(path):
        return _native.Engine(bundle.resolve(path).read_bytes())
def peak():
    # Not getrusage's, which begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
read("bundled")
before, began = peak(), time.process_time()
try:
    read(Path(sys.argv[2]))
    said = "accepted"
except ValueError as error:
    said = str(error)
print(time.process_time() - began, peak() - before, said.replace(sys.argv[2], "it"))
"""


def measure(kind: str, data: bytes) -> tuple[float, float, str]:
    """Seconds, megabytes, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hostile"
        path.write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-c", READ, kind, path], capture_output=True, text=True, check=True
        )
    seconds, megabytes, said = done.stdout.split(" ", 2)
    return float(seconds), float(megabytes), said.strip()


def main() -> None:
    """Measures, prints a table, and judges it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, nargs="+", default=[16e6, 7e6, 3.5e6, 1.5e6])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sound = True
    for kind in args.kinds:
        for name, make in KINDS[kind].items():
            for size in args.bytes:
                data = make(random.Random(args.seed), int(size))
                seconds, megabytes, said = measure(kind, data)
                good = seconds <= MOST_SECONDS and megabytes <= MOST_MEGABYTES
                good = good and said != "accepted" and len(said) <= 2000
                sound = sound and good
                print(
                    f"{'ok ' if good else 'NOT'} {kind:10} {name:28} {len(data) / 1e6:5.1f} MB "
                    f"{seconds:5.2f} s {megabytes:5.0f} MB  {said[:80]}"
                )
    sys.exit(not sound)


if __name__ == "__main__":
    main()
