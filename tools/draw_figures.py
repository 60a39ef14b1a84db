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

from fracskip import legacy
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
from fracskip.report.pictures import cheapest_and_dearest
from fracskip.report.reading import load_record
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord
from fracskip.report.svg import standalone
from fracskip.report.sweeps import shares_by_block

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
WIDTHS = (2, 3, 4, 6, 8)
FROZEN = ("06", "10", "15", "30")  # at which budgets, in tenths of a per cent


def sweep(name: str) -> SweepRecord:
    record = load_record(RESULTS / f"{name}.json")
    assert isinstance(record, SweepRecord), name
    return record


def sweeps(*names: str) -> list[SweepRecord]:
    """Of these, the sweeps that have a record."""
    return [sweep(name) for name in names if (RESULTS / f"{name}.json").exists()]


def runs(*names: str) -> list[RunRecord]:
    """Of these, the runs that have a record."""
    paths = [RESULTS / f"{name}.json" for name in names]
    found = [load_record(path) for path in paths if path.exists()]
    assert all(isinstance(record, RunRecord) for record in found), names
    return [record for record in found if isinstance(record, RunRecord)]


def plain(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = legacy.record(json.loads((RESULTS / f"{name}.json").read_text()))
    return tree


def single_member(name: str) -> Curve:
    """The same network without its cascade."""
    found = [point["single_member"] for point in plain(name)["points"]]
    return Curve("one member", tuple(Spot(one["cp"], one["accuracy"]) for one in found))


def allocated(name: str) -> Curve:
    """The best static allocations of the same weights."""
    points = plain(name)["points"]
    return Curve("best static allocation", tuple(Spot(p["cp"], p["accuracy"]) for p in points))


def bundled_curve(absolute: bool) -> str:
    """One network at every budget among static ones, in cp or in BitOps of any depth."""
    curve = sweep("dfs_resnet38_sweep")
    deep = runs(*(f"static_resnet38_{bits}bit" for bits in WIDTHS))
    if not absolute:
        axis = CostAxis()
        curves = [
            swept(curve, "one ResNet-38, every budget", axis),
            trained_alone(deep, "static ResNet-38", axis),
            single_member("dfs_resnet38_controls"),
            allocated("dfs_resnet38_allocation"),
            trained_alone(runs("frozen_resnet38_blocks_cp10"), "frozen, trained again", axis),
        ]
        return accuracy_curves(curves, axis, curve.images, ident="dfs-cp")
    small = sweep("low_resnet20_longer_sweep")
    shallow = runs(*(f"static_resnet20_{bits}bit" for bits in WIDTHS))
    deepest = runs(*(f"static_resnet74_45k_{bits}bit" for bits in WIDTHS))
    axis = CostAxis(known_macs([curve, small, *deep, *shallow, *deepest]))
    curves = [
        swept(curve, "one ResNet-38, every budget", axis),
        swept(small, "one ResNet-20, every budget", axis),
        trained_alone(deep, "static ResNet-38", axis),
        trained_alone(shallow, "static ResNet-20", axis),
        trained_alone(deepest, "static ResNet-74", axis),
    ]
    return accuracy_curves(curves, axis, curve.images, ident="dfs-bitops")


def contenders(depth: int) -> str:
    """What was trained from one backbone, for one training's length."""
    curve = sweep(f"low_resnet{depth}_45k_sweep")
    axis = CostAxis()
    static = runs(*(f"static_resnet{depth}_45k_{bits}bit" for bits in WIDTHS))
    frozen = runs(*(f"frozen_resnet{depth}_45k_cp{cp}" for cp in FROZEN))
    again = sweeps(f"low_resnet{depth}_45k_seed1_sweep")
    curves = [
        swept(curve, f"one ResNet-{depth}, every budget", axis),
        single_member(f"low_resnet{depth}_45k_controls"),
        trained_alone(static, "static", axis),
        *([trained_alone(frozen, "frozen", axis)] if frozen else []),
        *(swept(other, "another seed", axis) for other in again),
    ]
    return accuracy_curves(curves, axis, curve.images, ident=f"contenders-{depth}")


def with_block_shrinkage() -> str:
    """What shrinkage over blocks gives a ResNet-38, among what has the same backbone."""
    curve = sweep("low_resnet38_45k_blocks_sweep")
    axis = CostAxis()
    static = runs(*(f"static_resnet38_45k_{bits}bit" for bits in WIDTHS))
    frozen = runs("frozen_resnet38_45k_blocks_cp10")
    curves = [
        swept(curve, "one ResNet-38, shrunk over blocks", axis),
        single_member("low_resnet38_45k_blocks_controls"),
        trained_alone(static, "static", axis),
        trained_alone(frozen, "frozen", axis),
        swept(sweep("low_resnet38_45k_seed1_sweep"), "not shrunk over blocks", axis),
        swept(sweep("low_resnet38_45k_blocks_seed0_sweep"), "another seed", axis),
    ]
    return accuracy_curves(curves, axis, curve.images, ident="block-shrinkage")


def photographs() -> str:
    """Two networks at every budget, and the widths of the one with many."""
    low, clock = (sweep(f"photos5_{name}_resnet18_sweep") for name in ("dfs", "cpu"))
    widths = plain("photos5_dfs_resnet18")["test"]["static"]
    axis = CostAxis()
    curves = [
        swept(low, "skip and 2 to 8 bits", axis),
        Curve("its widths", tuple(Spot(one["cp"], one["accuracy"]) for one in widths)),
        swept(clock, "skip and 8 bits", axis),
    ]
    return accuracy_curves(curves, axis, low.images, ident="photographs")


def examples(name: str) -> str:
    """The images that cost least and most."""
    record = load_record(RESULTS / f"{name}.json")
    assert isinstance(record, EvaluationRecord), name
    return cheapest_and_dearest(record)


FIGURES: dict[str, Callable[[], str]] = {
    "dfs_resnet38_curve": lambda: bundled_curve(absolute=False),
    "dfs_resnet38_bitops": lambda: bundled_curve(absolute=True),
    "dfs_resnet38_blocks": lambda: shares_by_block(sweep("dfs_resnet38_sweep"), ident="dfs-blocks"),
    "resnet38_45k_contenders": lambda: contenders(38),
    "resnet74_45k_contenders": lambda: contenders(74),
    "resnet38_45k_blocks": with_block_shrinkage,
    "photos5_resnet18": photographs,
    "cascade_cifar10": lambda: accuracy_latency(plain("cascade_cifar10"), mean=True),
    "cascade_cifar100": lambda: accuracy_latency(plain("cascade_cifar100"), mean=True),
    "cascade_photos": lambda: accuracy_latency(plain("cascade_photos"), mean=True),
    "bench_photos5": lambda: accuracy_latency(plain("bench_photos5")),
    "dfs_resnet38_images": lambda: examples("eval_bundled_cifar10"),
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
