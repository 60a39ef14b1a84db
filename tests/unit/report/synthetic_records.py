"""Synthetic records, close to what an evaluation and a run of ResNet-38 write."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from fracskip.intervals import wilson_interval

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
COSTS = {"skip": 0.0, "full": 1.0}
Tree = dict[str, Any]


def cost_of(label: str) -> float:
    return COSTS[label] if label in COSTS else (int(label) / 32) ** 2


def thumbnail(rng: np.random.Generator) -> str:
    coarse = rng.integers(20, 235, (4, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))
    noise = rng.integers(-20, 20, pixels.shape)
    image = Image.fromarray((pixels.astype(int) + noise).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def entropy_bits(share: dict[str, float]) -> float:
    return -sum(p * math.log2(p) for p in share.values() if p)


def make_evaluation(
    *,
    options: tuple[str, ...] = ("skip", "8", "16", "full"),
    blocks: int = 17,
    classes: tuple[str, ...] = tuple(CLASSES),
    examples: int = 12,
    name: str = "bundled",
    accuracy: float = 0.925,
    seed: int = 0,
) -> Tree:
    """An evaluation record as a dictionary, ready to be spoilt by a test."""
    rng = np.random.default_rng(seed)

    def share(concentration: float = 0.5) -> dict[str, float]:
        weights = rng.dirichlet(np.linspace(1.5, 0.1, len(options)) * concentration)
        rounded = [round(float(weight), 4) for weight in weights]
        return dict(zip(options, rounded, strict=True))

    names = [f"layer{1 + i // 6}.{i % 6}" for i in range(1, blocks + 1)]
    shares = [share() for _ in names]
    total = {label: sum(s[label] for s in shares) / blocks for label in options}

    def example(cheap: bool) -> Tree:
        odds = np.array([0.62, 0.36, 0.02, 0] if cheap else [0.05, 0.6, 0.2, 0.15])
        odds = np.resize(odds, len(options))
        allocation = [str(x) for x in rng.choice(options, blocks, p=odds / odds.sum())]
        label = str(rng.choice(classes))
        wrong = not cheap and rng.random() < 0.3
        return {
            "index": int(rng.integers(10_000)),
            "label": label,
            "predicted": str(rng.choice(classes)) if wrong else label,
            "cp": sum(map(cost_of, allocation)) / blocks,
            "allocation": allocation,
            "png": thumbnail(rng),
        }

    widths = [option for option in options if option != "skip"]
    return {
        "schema": "fracskip.evaluation/2",
        "checkpoint": {
            "name": name,
            "digest": f"sha256:{seed:064x}",
            "model": "resnet38",
            "options": list(options),
            "quant": "lsq",
            "gate": "recurrent",
        },
        "data": {"name": "cifar10", "split": "test"},
        "images": 10_000,
        "accuracy": accuracy,
        "cp": 0.05 + seed * 0.01,
        "bitops_ratio": 0.12 + seed * 0.01,
        "option_share": total,
        "decision_entropy_bits": 0.31,
        "seconds": 12.3,
        "device": "cpu",
        "checkpoint_digest": f"sha256:{seed:064x}",
        "versions": {"fracskip": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "blocks": [
            {
                "name": block,
                "option_share": block_share,
                "entropy_bits": entropy_bits(block_share),
                "macs": 4_718_592,
            }
            for block, block_share in zip(names, shares, strict=True)
        ],
        "classes": [
            {
                "name": label,
                "images": 10_000 // len(classes),
                "accuracy": round(float(rng.uniform(0.84, 0.97)), 3),
                "cp": round(float(rng.uniform(0.04, 0.06)), 4),
                "option_share": share(6),
            }
            for label in classes
        ],
        "static": [
            {
                "option": width,
                "accuracy": min(max(accuracy + 0.004 - 0.01 * (0.01 / cost_of(width)), 0.1), 1.0),
                "cp": cost_of(width),
                "bitops_ratio": 0.08 + 0.92 * cost_of(width),
            }
            for width in widths
        ],
        "examples": {
            "cheapest": [example(True) for _ in range(examples)],
            "dearest": [example(False) for _ in range(examples)],
        },
    }


def make_events(test: Tree | None = None, *, joint: int = 30, finished: bool = True) -> list[Tree]:
    """The events of a run's log."""
    rng = np.random.default_rng(7)
    recipe = {"name": "r38", "seed": 0, "options": ["skip", "8", "16", "full"]}
    recipe |= {"joint": {"target": 0.05, "epochs": joint, "optim": {"lr": 0.02}}}
    start = {"event": "start", "name": "r38", "recipe": recipe, "device": "cpu"}
    events: list[Tree] = [start | {"versions": {"fracskip": "0.1.0", "torch": "2.13.0"}}]
    plan = [("backbone", 30), ("gates", 2), ("joint", joint)]
    step = 0
    for stage, epochs in plan:
        for epoch in range(1, epochs + 1):
            step += 352
            done = epoch / epochs
            accuracy = {"backbone": 0.45 + 0.5 * done**0.4, "gates": 0.94}.get(stage, 0.93)
            cp = {"backbone": None, "gates": 0.9 + 0.1 * done}.get(
                stage, max(0.05, 1 - 3.1 * done) + 0.004 * float(rng.random())
            )
            accuracy += 0.01 * float(rng.random())
            loss = 1.3 * (1 - accuracy) * 4 + 0.05 * float(rng.random())
            validation = {"accuracy": accuracy - 0.02, "cp": cp, "loss": loss + 0.06}
            event = {"event": "epoch", "stage": stage, "epoch": epoch, "step": step, "loss": loss}
            measure = "agreement" if stage == "gates" else "accuracy"
            event |= {measure: accuracy, "cp": cp, "lr": 0.02, "seconds": 86.0}
            events.append(event | {"validation": validation})
    if finished:
        events.append({"event": "end", "test": test, "seconds": 5000})
    return events


def escalated(evaluation: Tree, share: float = 0.234) -> Tree:
    """The same evaluation by a cascade that escalated its dearest examples, and others."""
    evaluation["escalation_rate"] = share
    for kind, again in (("cheapest", False), ("dearest", True)):
        for example in evaluation["examples"][kind]:
            allocation = example["allocation"]
            first = ["skip" if block % 2 else "8" for block in range(len(allocation))]
            example["first_allocation"] = first if again else None
            example["cp"] += again * sum(map(cost_of, first)) / len(allocation)
    return evaluation


def make_sweep(
    *,
    options: tuple[str, ...] = ("skip", "8", "full"),
    blocks: int = 17,
    name: str = "curve",
    escalation_rate: tuple[float, ...] | None = None,
) -> Tree:
    """A sweep record of five budgets as a dictionary; one of older days has no escalation rate."""
    points = []
    for step, budget in enumerate((0.01, 0.02, 0.03, 0.04, 0.06)):
        executed = min(budget / 0.0625, 1.0)
        share = {"skip": 1 - executed, "8": executed, "full": 0.0}
        points.append(
            {
                "budget": budget,
                "accuracy": 0.88 + 0.01 * step,
                "cp": 1.03 * budget,
                "bitops_ratio": budget + 0.002,
                "option_share": share,
                "decision_entropy_bits": 0.2,
                "seconds": 2.0,
                "blocks": [
                    {"name": f"layer{1 + i // 6}.{i % 6}", "option_share": share}
                    for i in range(1, blocks + 1)
                ],
            }
        )
    for point, share in zip(points, escalation_rate or (), strict=escalation_rate is not None):
        point["escalation_rate"] = share
    return {
        "schema": "fracskip.sweep/2",
        "checkpoint": {"name": name, "model": "resnet38", "options": list(options)},
        "data": {"name": "cifar10", "split": "test"},
        "images": 10_000,
        "points": points,
        "device": "cpu",
        "versions": {"fracskip": "0.1.0"},
    }


def make_cascade(
    *,
    times: tuple[float, ...] = (40.0, 70.0, 150.0),
    accuracies: tuple[float, ...] = (0.881, 0.906, 0.928),
    images: int = 10_000,
    name: str = "photos",
) -> Tree:
    """A cascade's record of three members and four operating points, as a dictionary."""
    costs = [time / times[-1] for time in times]

    def result(accuracy: float, mean: float) -> Tree:
        return {
            "accuracy": accuracy,
            "accuracy_95": list(wilson_interval(accuracy, images)),
            "latency_us": {"mean": mean, "p50": 0.9 * mean, "p99": 1.7 * mean},
        }

    def point(chain: tuple[int, ...], rates: tuple[float, ...], accuracy: float) -> Tree:
        mean, cost = (
            sum(rate * each[member] for rate, member in zip(rates, chain, strict=True))
            for each in (times, costs)
        )
        tree = {
            "budget": min(cost, 1.0),
            "chain": list(chain),
            "thresholds": [0.7] * (len(chain) - 1),
            "rates": list(rates),
            "cost": cost,
            "expected_cost": cost * 1.01,
            "bitops_ratio": cost / 16,
            **result(accuracy, mean),
        }
        if len(chain) > 1:
            tree |= {"random_escalation": accuracy - 0.021, "permuted_escalation": accuracy - 0.02}
        return tree

    return {
        "schema": "fracskip.cascade/1",
        "checkpoint": {"name": name, "digest": f"sha256:{7:064x}", "model": "lite0 > lite2"},
        "checkpoint_digest": f"sha256:{7:064x}",
        "data": {"name": "folder", "split": "test"},
        "images": images,
        "score": "probability",
        "members": [
            {
                "name": f"lite{number}",
                "image": [160 + 32 * number, 192],
                "options": ["8"] if number else ["skip", "8"],
                "budget": None if number else 0.5,
                "cost": cost,
                **result(accuracy, time),
            }
            for number, (time, accuracy, cost) in enumerate(
                zip(times, accuracies, costs, strict=True)
            )
        ],
        "points": [
            point((0,), (1.0,), accuracies[0]),
            point((0, 2), (1.0, 0.2), 0.913),
            point((0, 1, 2), (1.0, 0.4, 0.12), 0.92),
            point((0, 2), (1.0, 0.45), 0.931),
        ],
        "seconds": 31.0,
        "device": "1 thread of a processor, native engine (avx2)",
        "versions": {"fracskip": "0.9.0"},
    }
