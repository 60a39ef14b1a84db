"""Feeds the native reader and engine damaged bundles under sanitizers, and records the outcome.

    PYTHONPATH=tests python tools/fuzz_bundle.py --count 20000 --json results/fuzz_bundle.json

Two drivers: a deterministic one that knows what a bundle looks like (any compiler), and libFuzzer
with the same mutations (where clang is; `--libfuzzer-seconds 0` leaves it out). The first that
crashes, or that a sanitizer reports, ends the run with its report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fracskip.version import __version__
from support.native_build import SANITIZERS, build, run, write_seeds


def fuzz(seeds: Path, count: int, seed: int) -> dict[str, Any]:
    """The deterministic driver's counts."""
    driver = build("address", "fuzz_bundle") / "fuzz" / "fuzz_bundle"
    outcome = seeds / "outcome.json"
    arguments = ["--seeds", str(seeds), "--count", str(count), "--seed", str(seed)]
    run([str(driver), *arguments, "--json", str(outcome)])
    counts: dict[str, Any] = json.loads(outcome.read_text())
    return counts


def libfuzzer(seeds: Path, seconds: int, seed: int) -> dict[str, Any] | None:
    """The counts of libFuzzer; None where there is no clang."""
    clang = shutil.which("clang++")
    if not clang or not seconds:
        return None
    definitions = (f"CMAKE_CXX_COMPILER={clang}", "FRACSKIP_LIBFUZZER=ON")
    folder = build("address", "fuzz_bundle_libfuzzer", definitions=definitions, name="libfuzzer")
    corpus = seeds / "corpus"
    corpus.mkdir()
    for path in seeds.glob("*.fsk"):
        shutil.copy(path, corpus)
    command = [str(folder / "fuzz" / "fuzz_bundle_libfuzzer"), str(corpus), "-max_len=65536"]
    command += [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-print_final_stats=1",
        "-timeout=60",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=seeds)
    if done.returncode:
        raise SystemExit(done.stderr[-8000:])
    stats = dict(
        line.removeprefix("stat::").split(":", 1)
        for line in done.stderr.splitlines()
        if line.startswith("stat::")
    )
    version = subprocess.run([clang, "--version"], capture_output=True, text=True).stdout
    return {
        "runs": int(stats["number_of_executed_units"]),
        "new_inputs": int(stats["new_units_added"]),
        "seconds": seconds,
        "compiler": version.splitlines()[0],
    }


def main() -> None:
    """Runs both and writes the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--libfuzzer-seconds", type=int, default=120)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        counts = fuzz(seeds, given.count, given.seed)
        other = libfuzzer(seeds, given.libfuzzer_seconds, given.seed)
    record = {
        "schema": "fracskip.fuzz-bundle/1",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "fracskip": __version__,
        "machine": platform.machine(),
        "sanitizers": SANITIZERS["address"],
        "crashes": 0,
        "deterministic": counts,
        "libfuzzer": other,
    }
    temporary = given.json.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, given.json)
    print(f"{counts['mutants']} mutants: {counts['refused']} refused, {counts['run']} run")
    if other:
        print(f"libFuzzer: {other['runs']} runs")


if __name__ == "__main__":
    main()
