"""Proves that a run killed at random moments and resumed ends as if it had never been killed.

A recipe of all four stages on a tiny data set is run twice in processes of its own: once from
start to end, and once killed again and again (SIGKILL, so that nothing can be saved or tidied up)
and resumed. Then the weights must be the same bit for bit, and the records of the epochs and of
the test must be the same but for the seconds.

    python tools/prove_resume.py --steps 2000 --kills 10 --json results/resume.json

The moments are spread over the run: each kill waits until a random step of its own share of the
steps has been saved. Then half of the kills wait a random while longer, which ends anywhere: in a
step, in a validation, or (where the resumed run stands beyond that step already) while it starts.
The other half wait for the next write, and kill amid it if they are quick enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fracskip.checkpoint import read_package
from fracskip.machine import versions
from fracskip.training.sequence import STAGES

NAME = "proof"
BATCH, TRAIN, VALIDATION, TEST, SIDE = 8, 160, 12, 12, 8
STEPS_AN_EPOCH = TRAIN // BATCH
LIMIT_S = 1200.0


def draw_pictures(root: Path, seed: int) -> None:
    """Three classes of SIDE x SIDE images that differ in colour."""
    draw = np.random.RandomState(seed)
    for split, count in (("train", TRAIN + VALIDATION), ("val", TEST)):
        for index in range(count):
            pixels = draw.randint(0, 140, (SIDE, SIDE, 3))
            pixels[..., index % 3] += 80
            path = root / split / f"class{index % 3}" / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def epochs_for(steps: int) -> dict[str, int]:
    """Epochs of each stage, about `steps` steps in all: 3/10, 1/10, 1/10 and the rest."""
    epochs = max(4, round(steps / STEPS_AN_EPOCH))
    shares = {"backbone": 0.3, "supernet": 0.1, "gates": 0.1}
    before = {stage: max(1, round(share * epochs)) for stage, share in shares.items()}
    return {**before, "joint": epochs - sum(before.values())}


def write_recipe(folder: Path, steps: int, seed: int) -> Path:
    epochs = epochs_for(steps)
    path = folder / "recipe.toml"
    path.write_text(
        f'name = "{NAME}"\nseed = {seed}\nbatch_size = {BATCH}\noptions = ["skip", 4, "full"]\n'
        f'[data]\nname = "folder:{folder / "pictures"}"\nvalidation = {VALIDATION}\n'
        f"image = {{ size = [{SIDE}, {SIDE}] }}\ncrop_padding = 1\n"
        '[model]\nname = "resnet8"\n'
        "[quant]\ncalibration_images = 64\n"
        f"[backbone]\nepochs = {epochs['backbone']}\n"
        f"[supernet]\nepochs = {epochs['supernet']}\n"
        f"[gates]\nepochs = {epochs['gates']}\n"
        f"[joint]\nepochs = {epochs['joint']}\ntarget = 0.1\n"
        # Seven divides no epoch: most checkpoints lie within one.
        '[runtime]\ndevice = "cpu"\nthreads = 1\ncheckpoint_steps = 7\n',
        encoding="utf-8",
    )
    return path


def begin(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the run in `folder`, or resumes it where there is something to resume."""
    command = [sys.executable, "-m", "fracskip.cli", "train", str(recipe)]
    if (folder / "runs" / NAME / "state.safetensors").exists():
        command.append("--resume")
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def saved_place(run: Path) -> tuple[str, int, int] | None:
    """Stage, epoch and step of the saved state, read from its header alone."""
    try:
        with (run / "state.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return None
    position = json.loads(header["__metadata__"]["fracskip"])["meta"]["position"]
    return position["stage"], position["epoch"], position["step"]


def steps_done(place: tuple[str, int, int] | None, epochs: dict[str, int]) -> int:
    if place is None:
        return -1
    stage, epoch, step = place
    before = sum(epochs[name] for name in STAGES[: STAGES.index(stage)])
    return (before + epoch) * STEPS_AN_EPOCH + step


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a run; raises if it failed."""
    _, errors = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {errors.decode()}")


def kill_once(
    recipe: Path,
    folder: Path,
    after_step: int,
    epochs: dict[str, int],
    patience_s: float,
    amid_a_write: bool,
) -> dict[str, Any] | None:
    """Starts or resumes the run and kills it. None if it came to its end before."""
    run = folder / "runs" / NAME
    left = {path.name for path in run.glob(".*.part")} if run.exists() else set()
    begun = time.perf_counter()
    process = begin(recipe, folder)
    while steps_done(saved_place(run), epochs) < after_step and process.poll() is None:
        time.sleep(0.002)
    until = time.perf_counter() + (LIMIT_S if amid_a_write else patience_s)
    while time.perf_counter() < until and process.poll() is None:
        if amid_a_write and any(path.name not in left for path in run.glob(".*.part")):
            break
        time.sleep(0.0002)
    if process.poll() is not None:
        finish(process)
        return None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        return None
    place = saved_place(run)
    return {
        "after_seconds": round(time.perf_counter() - begun, 3),
        "saved": None
        if place is None
        else dict(zip(("stage", "epoch", "step"), place, strict=True)),
        "steps_done": max(0, steps_done(place, epochs)),
        "amid_a_write": any(path.name not in left for path in run.glob(".*.part")),
    }


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def read_run(run: Path) -> dict[str, Any]:
    """What of a finished run must not depend on how often it was killed."""
    model = run / "model.safetensors"
    log = (run / "record.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in log]
    return {
        "digest": read_package(model, "fracskip.checkpoint").digest,
        "file_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "epochs": without_seconds([event for event in events if event["event"] == "epoch"]),
        "test": without_seconds([event for event in events if event["event"] == "end"]),
        "events": [event["event"] for event in events],
        "files": sorted(path.name for path in run.iterdir()),
    }


def differences(whole: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """Names of what differs between two runs, as `read_run` gives them."""
    return sorted(key for key in whole if whole[key] != killed[key])


def prove(steps: int, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs twice, kills one, compares. Returns the outcome."""
    draw_pictures(folder / "pictures", seed)
    recipe, epochs = write_recipe(folder, steps, seed), epochs_for(steps)
    total = sum(epochs.values()) * STEPS_AN_EPOCH
    draw = random.Random(seed)

    (folder / "whole").mkdir()
    begun = time.perf_counter()
    process = begin(recipe, folder / "whole")
    while saved_place(folder / "whole" / "runs" / NAME) is None and process.poll() is None:
        time.sleep(0.002)
    startup_s = time.perf_counter() - begun
    finish(process)
    whole_s = time.perf_counter() - begun
    step_s = (whole_s - startup_s) / total

    (folder / "killed").mkdir()
    done: list[dict[str, Any]] = []
    for number in range(kills):
        # The last quarter is left alone, so that the run does not end before it is killed.
        after_step = int(draw.uniform(number, number + 1) / kills * 0.75 * total)
        run = folder / "killed" / "runs" / NAME
        beyond = steps_done(saved_place(run), epochs) >= after_step
        patience_s = draw.uniform(0, 1.2 * startup_s if beyond else 5 * step_s)
        moment = kill_once(
            recipe, folder / "killed", after_step, epochs, patience_s, draw.random() < 0.5
        )
        if moment is None:
            break
        done.append(moment)
        print(f"killed {len(done)}: {moment}", flush=True)
    finish(begin(recipe, folder / "killed"))

    whole, killed = (read_run(folder / name / "runs" / NAME) for name in ("whole", "killed"))
    return {
        "schema": "fracskip.resume-proof/1",
        "steps": total,
        "seed": seed,
        "kills_wanted": kills,
        "kills": done,
        "digest_uninterrupted": whole["digest"],
        "digest_killed": killed["digest"],
        "digests_equal": whole["digest"] == killed["digest"],
        "epochs_compared": len(whole["epochs"]),
        "differences": differences(whole, killed),
        "seconds_uninterrupted": round(whole_s, 1),
        "versions": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps, about")
    parser.add_argument("--kills", type=int, default=10, help="how often to kill the run")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the moments")
    parser.add_argument("--json", metavar="FILE", help="write the outcome here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prove-resume-") as folder:
        outcome = prove(options.steps, options.kills, options.seed, Path(folder))
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    kills = len(outcome["kills"])
    if outcome["differences"]:
        print(f"NOT the same after {kills} kills: {', '.join(outcome['differences'])}")
        return 1
    if kills < options.kills:
        print(f"the run ended after {kills} of {options.kills} kills: more steps are needed")
        return 1
    print(f"the same, bit for bit, after {kills} kills in {outcome['steps']} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
