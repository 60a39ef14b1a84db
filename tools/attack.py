"""Hostile images, bundles and checkpoints, and kills of a training run: at length, and counted.

    PYTHONPATH=tests python tools/attack.py --json results/attack.json
    PYTHONPATH=tests python tools/attack.py --only bundle:123

Each input has a kind and a seed, from which it is made; `tests/support/attacked.py` says what may
come of it. Inputs are read by processes of limited time and memory, which are replaced where they
die. A run that is killed in all of its stages must end with the weights of one that is not
(`tools/prove_resume.py`). Exits with 1 after any failure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fracskip.files import write_atomically
from fracskip.machine import describe_processor, versions

WORKERS = 2
KILL_STEPS = 40  # of training, for each kill


def attack(kind: str, seeds: range) -> list[dict[str, Any]]:
    """What came of each input; whichever a process dies of is a failure, and the next follows."""
    done: list[dict[str, Any]] = []
    while rest := seeds[len(done) :]:
        numbers = map(str, (rest.start, rest.stop, rest.step))
        command = [sys.executable, "-m", "support.attacked", kind, *numbers]
        with tempfile.TemporaryDirectory() as folder:  # removed also if the process dies
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
            )
            assert process.stdout
            ready = process.stdout.readline()
            done += map(json.loads, process.stdout)
            code = process.wait()
        if not ready:
            raise SystemExit(f"no process could be started that reads a {kind}")
        if rest := seeds[len(done) :]:
            reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            done.append({"seed": rest[0], "what": "", "outcome": "failed", "reason": reason})
    return done


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a kind, and its worst."""
    refused = Counter(row["outcome"] for row in rows)
    slowest = max(rows, key=lambda row: row.get("seconds", 0))
    largest = max(rows, key=lambda row: row.get("bytes", 0))
    return {
        "inputs": len(rows),
        "read": refused.pop("read", 0),
        "failed": refused.pop("failed", 0),
        "refused": dict(refused),
        "libtiff_on_stderr": sum(row.get("libtiff_words", False) for row in rows),
        "digests_repaired": sum(row.get("repaired", False) for row in rows),
        "slowest": {key: slowest.get(key) for key in ("seed", "what", "seconds")},
        "largest": {key: largest.get(key) for key in ("seed", "what", "bytes")},
    }


def kill(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Kills a run in all stages. What came of it, and what is wrong with that."""
    from prove_resume import prove  # loads torch

    from fracskip.training.sequence import STAGES

    with tempfile.TemporaryDirectory() as folder:
        outcome = prove(KILL_STEPS * count, count, seed, Path(folder))
    places = [kill["saved"]["stage"] if kill["saved"] else "start" for kill in outcome["kills"]]
    stages = dict(Counter(places))
    kept = {key: outcome[key] for key in ("steps", "digests_equal", "differences")}
    amid = sum(kill["amid_a_write"] for kill in outcome["kills"])
    wrong = [f"{name} differs after the kills" for name in outcome["differences"]]
    wrong += [f"no kill in stage {stage}" for stage in STAGES if stage not in stages]
    if len(places) < count:
        wrong.append(f"the run ended after {len(places)} kills")
    return {"kills": len(places), "by_stage": stages, "amid_a_write": amid, **kept}, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--bundles", type=int, default=5000)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the first input of every kind")
    parser.add_argument(
        "--only", metavar="KIND:SEED", help="one input, as bundle:123, or some, as bundle:0-9"
    )
    parser.add_argument("--json", type=Path, help="write the outcome here")
    given = parser.parse_args()
    if given.only:
        kind, seeds = given.only.split(":")
        first, _, stop = seeds.partition("-")
        rows = attack(kind, range(int(first), int(stop or int(first) + 1)))
        print("\n".join(map(json.dumps, rows)))
        return int(any(row["outcome"] == "failed" for row in rows))
    begun = time.perf_counter()
    wanted = {"image": given.images, "bundle": given.bundles, "checkpoint": given.checkpoints}
    record: dict[str, Any] = {
        "schema": "fracskip.attack/1",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": describe_processor(WORKERS),
        "versions": versions(),
        "seed": given.seed,
    }
    failures: list[dict[str, Any]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        shares: dict[str, list[Future[list[dict[str, Any]]]]] = {kind: [] for kind in wanted}
        for kind, count in wanted.items():
            step = min(WORKERS, 1 + count // 500)  # a process takes seconds to start
            for first in range(given.seed, given.seed + step):
                seeds = range(first, given.seed + count, step)
                shares[kind].append(pool.submit(attack, kind, seeds))
        for kind, share in shares.items():
            rows = [row for part in share for row in part.result()]
            if rows:
                record[kind] = summary(rows)
                print(f"{kind}: {record[kind]}", flush=True)
            failures += [{"kind": kind, **row} for row in rows if row["outcome"] == "failed"]
    if given.kills:
        record["kill"], wrong = kill(given.kills, given.seed)
        failures += [{"kind": "kill", "seed": given.seed, "reason": reason} for reason in wrong]
    record |= {"failures": failures, "seconds": round(time.perf_counter() - begun)}
    if given.json:
        write_atomically(given.json, (json.dumps(record, indent=1) + "\n").encode())
    for failure in failures[:20]:
        print(f"FAILED {failure['kind']}:{failure['seed']}: {failure['reason']}")
    print(f"{len(failures)} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
