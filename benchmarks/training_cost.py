"""What a step of joint training costs, in steps of plain backbone training.

Interleaved in one run, medians, batch 128 of random images. Gates are fresh and their noise is
full, so options are taken evenly: the state in which grouping has most to do. The dense form
(every option for every image) is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from fracskip.config import JointStage, Recipe
from fracskip.devices import describe, pick_device
from fracskip.dynamic import DynamicNetwork
from fracskip.machine import versions
from fracskip.models import create_model
from fracskip.training.joint import JointTraining
from fracskip.training.stages import BackboneTraining, Stage, StepIndex

OPTION_SETS = {
    "skip8": ("skip", "8", "full"),
    "paper": ("skip", "8", "16", "full"),
    "low": ("skip", "2", "3", "4", "6", "8"),
    "paper7": ("skip", "8", "10", "12", "14", "16", "full"),
}


def joint(recipe: Recipe, device: torch.device, images: torch.Tensor) -> JointTraining:
    spec = recipe.model_spec("abcdefghij", "random")
    net = DynamicNetwork(create_model(recipe.model.name), spec).to(device)
    net = net.to(memory_format=torch.channels_last)
    net.calibrate([images])
    return JointTraining(net.train(), recipe, device, bf16=False)


def step_seconds(stage: Stage, images: torch.Tensor, labels: torch.Tensor) -> float:
    begin = time.perf_counter()
    stage.step(images, labels, StepIndex(0, 0, 0.0))
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet38")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    device = pick_device()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, 32, 32, generator=draw).to(device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch,), generator=draw).to(device)
    rows = {}
    for name, labels_of_set in OPTION_SETS.items():
        settings = {"name": name, "options": labels_of_set, "model": {"name": options.model}}
        recipe = Recipe.model_validate(settings)
        dense = JointStage(gate_gradient="dense")
        plain_net = create_model(options.model).to(device).to(memory_format=torch.channels_last)
        stages: dict[str, Stage] = {
            "plain": BackboneTraining(plain_net.train(), recipe, device, bf16=False),
            "sampled": joint(recipe, device, images),
            "dense": joint(recipe.model_copy(update={"joint": dense}), device, images),
        }
        times: dict[str, list[float]] = {key: [] for key in stages}
        for turn in range(options.rounds + 1):
            for key, stage in stages.items():
                seconds = step_seconds(stage, images, labels)
                if turn:  # the first round warms up
                    times[key].append(seconds)
        medians = {key: statistics.median(values) for key, values in times.items()}
        rows[name] = {
            "options": len(labels_of_set),
            "plain_seconds": medians["plain"],
            "sampled_in_plain_steps": medians["sampled"] / medians["plain"],
            "dense_in_plain_steps": medians["dense"] / medians["plain"],
        }
        print(
            f"{name:7} K={len(labels_of_set)}  plain {medians['plain']:.3f} s  "
            f"sampled x{rows[name]['sampled_in_plain_steps']:.2f}  "
            f"dense x{rows[name]['dense_in_plain_steps']:.2f}",
            flush=True,
        )
    if options.json:
        record = {
            "schema": "fracskip.training-cost/1",
            "model": options.model,
            "batch": options.batch,
            "rounds": options.rounds,
            "device": describe(device),
            "versions": versions(),
            "option_sets": rows,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
