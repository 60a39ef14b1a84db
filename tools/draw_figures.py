"""Draws every figure of docs/results.md and the README from the records under results/ alone.

Run from the repository's root:

    python tools/draw_figures.py            # make figures
    python tools/draw_figures.py --to DIR   # elsewhere
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fracskip.files import write_atomically
from fracskip.report.curves import (
    CostAxis,
    Curve,
    Spot,
    accuracy_curves,
    known_macs,
    swept,
    trained_alone,
)
from fracskip.report.latency import accuracy_latency, skipped_latency
from fracskip.report.reading import load_record
from fracskip.report.records import RunRecord, SweepRecord
from fracskip.report.svg import standalone
from fracskip.report.sweeps import shares_by_block

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
WIDTHS = (2, 3, 4, 6, 8)


def sweep(name: str) -> SweepRecord:
    record = load_record(RESULTS / f"{name}.json")
    assert isinstance(record, SweepRecord), name
    return record


def runs(*names: str) -> list[RunRecord]:
    """Of these, the runs that have a record."""
    paths = [RESULTS / f"{name}.json" for name in names]
    found = [load_record(path) for path in paths if path.exists()]
    assert all(isinstance(record, RunRecord) for record in found), names
    return [record for record in found if isinstance(record, RunRecord)]


def plain(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return tree


def cascades(name: str) -> Curve:
    """What the same network reaches when images that it is not sure of are run again."""
    found = [(point["cp"], point["cascade"]["own_widths"]) for point in plain(name)["points"]]
    spots = (Spot(cp, best["accuracy"]) for cp, best in found if best is not None)
    return Curve("cascade by confidence", tuple(spots))


def low_widths(absolute: bool) -> str:
    """One network at every budget among static ones, in cp or in BitOps of any depth."""
    curve = sweep("low_resnet38_sweep")
    deep = runs(*(f"static_resnet38_{bits}bit" for bits in WIDTHS))
    shallow = runs(*(f"static_resnet20_{bits}bit" for bits in WIDTHS))
    frozen = runs("frozen_resnet38_cp08", "frozen_resnet38_cp15")
    axis = CostAxis(known_macs([curve, *deep, *shallow]) if absolute else None)
    curves = [
        swept(curve, "one ResNet-38, every budget", axis),
        trained_alone(deep, "static ResNet-38", axis),
    ]
    if absolute and shallow:
        curves.append(trained_alone(shallow, "static ResNet-20", axis))
    if not absolute and frozen:
        curves.append(trained_alone(frozen, "frozen at the majority", axis))
    if not absolute:
        curves.append(cascades("low_resnet38_study"))
    ident = "low-bitops" if absolute else "low-cp"
    return accuracy_curves(curves, axis, curve.images, ident=ident)


FIGURES: dict[str, Callable[[], str]] = {
    "low_resnet38_curve": lambda: low_widths(absolute=False),
    "low_resnet38_bitops": lambda: low_widths(absolute=True),
    "low_resnet38_blocks": lambda: shares_by_block(sweep("low_resnet38_sweep"), ident="low-blocks"),
}
for machine in ("", "_avx2"):
    for bench in ("bench_r38", "bench_r74"):
        name = bench + machine
        FIGURES[name] = lambda name=name: accuracy_latency(plain(name))
    name = "skip_proportional" + machine
    FIGURES[name] = lambda name=name: skipped_latency(plain(name)["forced"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--only", metavar="NAME", choices=FIGURES, nargs="+", default=list(FIGURES))
    given = parser.parse_args()
    for name in given.only:
        path = given.to / f"{name}.svg"
        write_atomically(path, standalone(FIGURES[name]()).encode())
        print(path)


if __name__ == "__main__":
    main()
