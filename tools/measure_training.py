"""Time and memory of training a converted ResNet-50 at 224 x 224, beside the plain network's.

    python tools/measure_training.py --json results/training_imagenet.json

Weights and images are random: neither time nor memory depends on them, and accuracy is not told.
Every task has a fresh process in every round, so that its peak of memory is its own, and all tasks
of a round follow each other, so that a busy machine slows them alike: ratios are taken within
rounds. Steps are those of `fracskip.fit`, teacher included, for one budget. On a CPU seconds are
the process's own; a GPU's are the clock's.

Needs a torch that torchvision imports with (`make zoo` has one).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from imagenet_bundles import IMAGE, settled
from torch import Tensor, nn

import fracskip
from fracskip.bench import conditions
from fracskip.config import Recipe, recipe_from_dict
from fracskip.devices import describe, pick_device
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.convert import GATE
from fracskip.machine import versions
from fracskip.models import create_backbone
from fracskip.operating import OperatingPoints
from fracskip.quant.fused import fusing
from fracskip.training.joint import JointTraining
from fracskip.training.loaders import ValidationSet
from fracskip.training.multipliers import target_multiplier
from fracskip.training.stages import AllocationTraining, BackboneTraining, StageBase, StepIndex
from fracskip.training.standard import QUANT, stages
from fracskip.training.supernet import SupernetTraining

NETWORK, CLASSES, OPTIONS = "torchvision/resnet50", 1000, "low"
BUDGET = 0.03
EARLY = 0.01  # of a stage: steps are small while its learning rate rises
PRECISIONS = ("float32", "bf16")
REFERENCES = {
    "plain step": "plain step",
    "supernet step": "plain step",
    "supernet step, no teacher": "plain step",
    "supernet step, fused": "plain step",
    "joint step": "plain step",
    "plain evaluation": "plain evaluation",
    "evaluation by the gates": "plain evaluation",
}
"""What is measured, and what it is compared with."""


# -- one task, in a process of its own -------------------------------------------------------------


def random_images(count: int) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(0))


def prepare(folder: Path) -> dict[str, int]:
    """Writes both networks, the converted one calibrated; returns their parameters' bytes."""
    torch.manual_seed(0)
    images = random_images(8)
    plain = settled(create_backbone(NETWORK, IMAGE[0], CLASSES), images)
    torch.save(plain.state_dict(), folder / "plain.pt")
    net = fracskip.convert(
        plain, OPTIONS, example_input=images[:1], calibration=[images], name=NETWORK
    )
    held = ValidationSet(images.numpy(), torch.zeros(8, dtype=torch.int64).numpy())
    net.operating_points = OperatingPoints(target=BUDGET)
    multiplier, _ = target_multiplier(net, held, BUDGET)
    net.operating_points = net.operating_points.changed(multiplier=multiplier)
    fracskip.save(net, folder / "converted.safetensors")
    return {"plain": parameter_bytes(plain), "converted": parameter_bytes(net)}


def parameter_bytes(net: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in net.parameters())


def optimiser_bytes(stage: StageBase) -> int:
    states = [state for each in stage.optimisers for state in each.state.values()]
    values = [value for state in states for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() * value.element_size() for value in values)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class Memory:
    """What is held at most, beyond what this process holds when this is made: its libraries."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0 if device.type == "cuda" else resident("VmRSS")

    def forget(self) -> None:
        """Loading a network may take more than what is to be measured."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def peak(self) -> int:
        """Since the last `forget`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resident("VmHWM") - self._before


def load_plain(folder: Path) -> nn.Module:
    net = create_backbone(NETWORK, IMAGE[0], CLASSES)
    net.load_state_dict(torch.load(folder / "plain.pt", weights_only=True))
    return net


def make_stage(task: str, folder: Path, recipe: Recipe, device: torch.device) -> StageBase:
    """The stage whose steps are timed, its network in place."""

    def placed(net: nn.Module) -> Any:
        return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    bf16 = recipe.runtime.amp == "bf16"
    if task == "plain step":
        return BackboneTraining(placed(load_plain(folder)).train(), recipe, device, bf16)
    net = placed(fracskip.load(folder / "converted.safetensors"))
    teacher = None
    if task != "supernet step, no teacher":
        teacher = placed(load_plain(folder)).eval().requires_grad_(False)
    kind = JointTraining if task == "joint step" else SupernetTraining
    return kind(net.train(), recipe, device, bf16, teacher)


def make_run(
    task: str, folder: Path, precision: str, images: Tensor, labels: Tensor
) -> tuple[Callable[[int], None], StageBase | None]:
    """What is timed, given the number of the step; and its stage, if it is one's."""
    device = images.device
    if "evaluation" in task:
        plain = task == "plain evaluation"
        net = load_plain(folder) if plain else fracskip.load(folder / "converted.safetensors")
        net = net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

        def evaluate(step: int) -> None:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                net(images)

        return evaluate, None

    recipe = recipe_from_dict(
        {
            "name": "measured",
            "batch_size": len(images),
            "options": OPTIONS,
            "model": {"name": NETWORK},
            "quant": QUANT.model_dump(),
            "gate": GATE.model_dump(),
            "runtime": {"amp": "bf16" if precision == "bf16" else "off"},
            **stages(BUDGET, members=1),
        }
    )
    stage = make_stage(task, folder, recipe, device)

    def train(step: int) -> None:
        result = stage.step(images, labels, StepIndex(0, step, EARLY))  # type: ignore[attr-defined]
        if not torch.tensor(result.loss).isfinite():
            raise RuntimeError(f"the loss of {task} is {result.loss}")

    return train, stage


def warm_up(stage: StageBase | None, images: Tensor, labels: Tensor) -> None:
    """Every option's weights get their momentum, as after a few dozen steps."""
    if isinstance(stage, AllocationTraining):
        net = stage.net
        assert isinstance(net, DynamicNetwork)
        for option in range(int(net.options.can_skip), len(net.options)):
            path = [option] * len(net.blocks)
            stage.train_allocation(images[:1], labels[:1], path, StepIndex(0, 0, EARLY))


def work(task: str, folder: Path, precision: str, batch: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, and memory."""
    device = pick_device()
    memory = Memory(device)
    images = random_images(batch).to(device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device)
    run, stage = make_run(task, folder, precision, images, labels)
    memory.forget()
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    seconds = []
    with fusing("fused" in task):
        warm_up(stage, images, labels)
        for step in range(steps + 1):
            begin = clock()
            run(step)
            if cuda:
                torch.cuda.synchronize()
            if step:  # the first one warms up
                seconds.append(clock() - begin)
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak,
        "optimiser_bytes": optimiser_bytes(stage) if stage is not None else 0,
    }


# -- all of them -----------------------------------------------------------------------------------


def in_a_process(*words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *words]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


def measure(folder: Path, batch: int, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """After each round, of all so far: by precision, by task, what `work` gave."""
    found: dict[str, Any] = {each: {task: [] for task in REFERENCES} for each in PRECISIONS}
    for turn in range(rounds):
        for precision in PRECISIONS:
            for task, results in found[precision].items():
                size = ("--batch", str(batch), "--steps", str(steps))
                one = in_a_process("--task", task, precision, str(folder), *size)
                results.append(one)
                seconds, peak = statistics.median(one["seconds"]), one["peak_bytes"] / 1e9
                print(
                    f"round {turn + 1}  {precision:8} {task:26} {seconds:7.2f} s  {peak:5.2f} GB",
                    file=sys.stderr,
                    flush=True,
                )
        yield found


def summarised(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each task's figures, and how many times its reference's they are."""
    rows: dict[str, Any] = {}
    medians = {
        task: [statistics.median(one["seconds"]) for one in rounds]
        for task, rounds in results.items()
    }
    for task, rounds in results.items():
        reference = REFERENCES[task]
        times = [a / b for a, b in zip(medians[task], medians[reference], strict=True)]
        peak = statistics.median(one["peak_bytes"] for one in rounds)
        of = statistics.median(one["peak_bytes"] for one in results[reference])
        rows[task] = {
            "seconds": statistics.median(second for one in rounds for second in one["seconds"]),
            "seconds_by_round": [one["seconds"] for one in rounds],
            "compared_with": reference,
            "times": {
                "median": statistics.median(times),
                "lowest": min(times),
                "highest": max(times),
            },
            "peak_bytes": int(peak),
            "peak_bytes_by_round": [one["peak_bytes"] for one in rounds],
            "peak_times": peak / of,
            "optimiser_bytes": rounds[0]["optimiser_bytes"],
        }
    return rows


def make_record(
    options: argparse.Namespace,
    load_before: list[float],
    parameters: dict[str, Any],
    found: dict[str, Any],
) -> dict[str, Any]:
    device = pick_device()
    return {
        "schema": "fracskip.training-imagenet/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": NETWORK,
        "weights": "random",
        "options": OPTIONS,
        "image": list(IMAGE),
        "batch": options.batch,
        "budget": BUDGET,
        "rounds": len(found[PRECISIONS[0]]["plain step"]),
        "steps": options.steps,
        "seconds_are": "the clock's" if device.type == "cuda" else "the process's",
        "device": describe(device),
        "machine": conditions.describe(load_before),
        "versions": {**versions(), "torchvision": metadata.version("torchvision")},
        "parameter_bytes": parameters,
        "precisions": {precision: summarised(found[precision]) for precision in PRECISIONS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed, of each process")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.prepare)))
        return
    if options.task:
        task, precision, folder = options.task
        print(json.dumps(work(task, Path(folder), precision, options.batch, options.steps)))
        return
    before = conditions.load_average()
    with tempfile.TemporaryDirectory() as folder:
        parameters = in_a_process("--prepare", folder)
        for found in measure(Path(folder), options.batch, options.rounds, options.steps):
            record = make_record(options, before, parameters, found)
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
