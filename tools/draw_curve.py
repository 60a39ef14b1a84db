"""Draws one network's curve among networks that were each trained for one cost, from records alone.

Run from the repository's root:

    python tools/draw_curve.py results/SWEEP.json results/RUN.json ... --figure results/CURVE.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fracskip.files import write_atomically
from fracskip.report.curves import accuracy_curve, rival_of
from fracskip.report.reading import load_record
from fracskip.report.records import RunRecord, SweepRecord
from fracskip.report.svg import standalone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--figure", metavar="FILE", required=True)
    given = parser.parse_args()
    sweep = load_record(given.sweep)
    runs = [load_record(path) for path in given.runs]
    if not isinstance(sweep, SweepRecord):
        parser.error(f"{given.sweep} is no record of a sweep")
    rivals = []
    for path, run in zip(given.runs, runs, strict=True):
        rival = rival_of(run) if isinstance(run, RunRecord) else None
        if rival is None:
            parser.error(f"{path} is no record of a finished run")
        rivals.append(rival)
    figure = standalone(accuracy_curve(sweep, rivals))
    write_atomically(Path(given.figure), figure.encode())


if __name__ == "__main__":
    main()
