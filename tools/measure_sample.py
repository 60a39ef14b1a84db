"""A published network on the bundled images: the points that a test computes again.

On AVX2 kernels, which round alike on every processor that has them.

Run from the repository's root:

    python tools/measure_sample.py dfs-resnet38-cifar10 --budget 0.01 --json results/sample.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checking import session_of

from fracskip.checkpoint import load
from fracskip.data import load_sample
from fracskip.evaluation import evaluate
from fracskip.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT", help="file or published name")
    parser.add_argument("--budget", type=float, help="computation share; the network's own without")
    parser.add_argument("--json", metavar="FILE", type=Path, required=True)
    given = parser.parse_args()
    session = session_of(load(given.checkpoint), threads=1, isa="avx2")
    record = evaluate(
        session, load_sample(), name=given.checkpoint, budget=given.budget, static=False, examples=0
    )
    write_atomically(given.json, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{given.json}: {100 * record['accuracy']:.1f}% at {100 * record['cp']:.2f}%")


if __name__ == "__main__":
    main()
