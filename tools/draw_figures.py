"""Draws every figure of docs/results.md and the README from the records under results/.

Images are taken from the data sets in the cache: `fracskip data cifar10` before.

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
from fracskip.errors import DataError
from fracskip.files import write_atomically
from fracskip.report.curves import (
    Curve,
    Spot,
    accuracy_curves,
    swept,
    trained_alone,
)
from fracskip.report.latency import accuracy_latency, skipped_latency
from fracskip.report.pictures import cheapest_and_dearest
from fracskip.report.pixels import with_pictures
from fracskip.report.reading import load_record
from fracskip.report.records import EvaluationRecord, RunRecord, SweepRecord
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
    found = [load_record(RESULTS / f"{name}.json") for name in names]
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


def bundled_curve() -> str:
    """One network at every budget among static ones."""
    curve = sweep("dfs_resnet38_sweep")
    static = runs(*(f"static_resnet38_{bits}bit" for bits in WIDTHS))
    curves = [
        swept(curve, "one ResNet-38, every budget"),
        trained_alone(static, "static ResNet-38"),
        single_member("dfs_resnet38_controls"),
        allocated("dfs_resnet38_allocation"),
        trained_alone(runs("frozen_resnet38_cifar10"), "frozen, trained again"),
    ]
    return accuracy_curves(curves, curve.images, ident="dfs-cp")


def resnet74_curve() -> str:
    """What was trained from one ResNet-74, for one training's length."""
    curve = sweep("dfs_resnet74_sweep")
    static = runs(*(f"static_resnet74_{bits}bit" for bits in (3, 4, 8)))
    curves = [
        swept(curve, "one ResNet-74, every budget"),
        single_member("dfs_resnet74_controls"),
        trained_alone(static, "static"),
        trained_alone(runs("frozen_resnet74_cifar10"), "frozen"),
    ]
    return accuracy_curves(curves, curve.images, ident="contenders-74")


def with_block_shrinkage() -> str:
    """What shrinkage over blocks gives a ResNet-38, among what has the same backbone."""
    curve = sweep("dfs_resnet38_45k_sweep")
    static = runs(*(f"static_resnet38_45k_{bits}bit" for bits in WIDTHS))
    frozen = runs("frozen_resnet38_45k")
    curves = [
        swept(curve, "one ResNet-38, shrunk over blocks"),
        single_member("dfs_resnet38_45k_controls"),
        trained_alone(static, "static"),
        trained_alone(frozen, "frozen"),
        swept(sweep("dfs_resnet38_45k_unshrunk_sweep"), "not shrunk over blocks"),
        swept(sweep("dfs_resnet38_45k_seed0_sweep"), "another seed"),
    ]
    return accuracy_curves(curves, curve.images, ident="block-shrinkage")


def examples(name: str) -> str:
    """The images that cost least and most.

    Raises:
        DataError: if they are not at hand.
    """
    record = load_record(RESULTS / f"{name}.json")
    assert isinstance(record, EvaluationRecord), name
    record, missing = with_pictures(record)
    if missing:
        raise DataError(missing)
    return cheapest_and_dearest(record)


FIGURES: dict[str, Callable[[], str]] = {
    "cascade_cifar10": lambda: accuracy_latency(plain("cascade_cifar10"), mean=True),
    "cascade_cifar100": lambda: accuracy_latency(plain("cascade_cifar100"), mean=True),
    "cascade_photos": lambda: accuracy_latency(plain("cascade_photos"), mean=True),
    "bench_r74": lambda: accuracy_latency(plain("bench_r74")),
    "skip_proportional": lambda: skipped_latency(plain("skip_proportional")["forced"]),
    "dfs_resnet38_curve": bundled_curve,
    "dfs_resnet38_blocks": lambda: shares_by_block(sweep("dfs_resnet38_sweep"), ident="dfs-blocks"),
    "dfs_resnet38_images": lambda: examples("eval_bundled_cifar10"),
    "dfs_resnet74_curve": resnet74_curve,
    "dfs_resnet38_45k_curve": with_block_shrinkage,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--only", metavar="NAME", choices=FIGURES, nargs="+", default=list(FIGURES))
    given = parser.parse_args()
    lacking = []
    for name in given.only:
        path = given.to / f"{name}.svg"
        try:
            figure = FIGURES[name]()
        except DataError as error:
            lacking.append(f"{path} is left as it is: {error}")
            continue
        write_atomically(path, standalone(figure).encode())
        print(path)
    if lacking:
        raise SystemExit("\n".join(lacking))


if __name__ == "__main__":
    main()
