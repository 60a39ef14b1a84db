"""Which images are expensive, and whether the gates know more than a cheap network's confidence.

At each budget: what right and wrong images cost, how cost follows the backbone's confidence and the
network's own errors, what each class costs. Beside it the cascade that needs no gates: run all
blocks at one width and, where the prediction's confidence is low, again at a dearer one. So many
images are run twice that the mean cost is the budget; of all pairs of widths the one that is best
on these very images is given.

Run from the repository's root:

    python tools/study_images.py CKPT --backbone models/resnet38_cifar10.safetensors \
        --static FILE ... --json results/study.json
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checking import publish, session_of
from numpy.typing import NDArray

from fracskip.checkpoint import load, load_backbone
from fracskip.data import ImageSet, load_split
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation.sweep import default_budgets
from fracskip.machine import cores, describe_processor
from fracskip.models import create_model
from fracskip.runtime import InferenceSession

THREADS = cores()
Numbers = NDArray[np.float64]


def ranks(values: Numbers) -> Numbers:
    """From 1, ascending; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def spearman(one: Numbers, other: Numbers) -> float:
    """Correlation of ranks; 0 where one of them does not vary."""
    first, second = ranks(one), ranks(other)
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def auc(score: Numbers, positive: NDArray[np.bool_]) -> float:
    """How often a positive image has the larger score than a negative one; 0.5 is chance."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return 0.5
    return float((ranks(score)[positive].sum() - count * (count + 1) / 2) / (count * others))


def confidence(logits: NDArray[np.floating[Any]]) -> Numbers:
    """Of each image's first choice, in (0, 1]."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(1 / np.exp(shifted).sum(1))


class Fixed:
    """A network that treats all images alike, for a cascade: its cost and its answers."""

    def __init__(self, name: str, cp: float, logits: Any, labels: NDArray[Any]) -> None:
        self.name, self.cp = name, cp
        self.right = logits.argmax(1) == labels
        self.confidence = confidence(logits)


def cascade(cheap: Fixed, dear: Fixed, budget: float) -> float | None:
    """Accuracy where the least confident images are run again, as many as the budget pays for."""
    share = (budget - cheap.cp) / dear.cp
    if not 0 <= share <= 1:
        return None
    again = np.argsort(cheap.confidence, kind="stable")[: round(share * len(cheap.right))]
    right = cheap.right.copy()
    right[again] = dear.right[again]
    return float(right.mean())


def best_cascade(fixed: list[Fixed], budget: float) -> dict[str, Any] | None:
    """The pair that is best on these images."""
    found = []
    for cheap, dear in itertools.permutations(fixed, 2):
        accuracy = cascade(cheap, dear, budget) if cheap.cp < dear.cp else None
        if accuracy is not None:
            found.append((accuracy, cheap.name, dear.name))
    if not found:
        return None
    accuracy, cheap_name, dear_name = max(found)
    return {"accuracy": accuracy, "first": cheap_name, "then": dear_name}


@torch.inference_mode()
def backbone_logits(path: Path, net: DynamicNetwork, data: ImageSet) -> NDArray[np.float32]:
    """The plain network's."""
    image = net.spec.image
    plain = create_model(net.spec.model.name, image.channels, len(net.spec.class_names))
    load_backbone(path, plain)
    plain.eval()
    parts = [
        plain(preprocess(data.images[start : start + 250], image))
        for start in range(0, len(data), 250)
    ]
    return torch.cat(parts).numpy()


def point(
    session: InferenceSession,
    data: ImageSet,
    budget: float,
    sure: Numbers,
    known: NDArray[np.bool_],
    own: list[Fixed],
    alone: list[Fixed],
) -> dict[str, Any]:
    """What images cost at a budget, and who pays.

    Args:
        session: The network.
        data: Images and labels.
        budget: Asked for.
        sure: The backbone's confidence.
        known: Where the backbone is right.
        own: The network's widths, for cascades.
        alone: Static networks, likewise.
    """
    result = session.run(data.images, budget=budget)
    cost = session.cost(result)
    costs = cost.image_cp
    right = result.logits.argmax(1) == data.labels
    cp = cost.cp
    own_sure = confidence(result.logits)
    classes = {
        name: {
            "cp": float(costs[data.labels == index].mean()),
            "accuracy": float(right[data.labels == index].mean()),
        }
        for index, name in enumerate(data.class_names)
    }
    return {
        "budget": budget,
        "cp": cp,
        "accuracy": float(right.mean()),
        "cp_of_right_images": float(costs[right].mean()),
        "cp_of_wrong_images": float(costs[~right].mean()),
        "cp_of_images_the_backbone_misses": float(costs[~known].mean()),
        "cp_deciles": np.quantile(costs, np.linspace(0, 1, 11)).tolist(),
        "cost_tells_errors_auc": auc(costs, ~right),
        "own_confidence_tells_errors_auc": auc(-own_sure, ~right),
        "rank_correlation_of_cost": {
            "backbone_confidence": spearman(costs, sure),
            "own_confidence": spearman(costs, own_sure),
        },
        "classes": classes,
        "cascade": {
            "own_widths": best_cascade(own, cp),
            "static_networks": best_cascade(alone, cp),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--static", nargs="*", default=[], metavar="CKPT", help="for cascades")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    net = load(given.checkpoint)
    test = load_split(given.data, "test", net.spec.image)
    data = test.subset(range(min(given.images, len(test))))
    session = session_of(net, THREADS)
    reach = session.plan.budgets
    if reach is None:
        parser.error(f"{given.checkpoint} takes no budget: there is nothing to study")
    own, alone = [], []
    for option in session.options:
        if not option.is_skip:
            decisions = session.forced(option, len(data))
            logits = session.run(data.images, decisions=decisions).logits
            cp = session.cost(decisions).cp
            own.append(Fixed(f"own, {option.label} bits", cp, logits, data.labels))
    digests = {}
    for path in given.static:
        trained = load(path)
        static = session_of(trained, THREADS)
        cp = static.cost(static.forced(static.options[0], len(data))).cp
        logits = static.run(data.images).logits
        name = f"static, {trained.spec.options[0]} bits"
        digests[name] = trained.digest
        alone.append(Fixed(name, cp, logits, data.labels))
    plain = backbone_logits(given.backbone, net, data)
    known = plain.argmax(1) == data.labels
    record = {
        "schema": "fracskip.study/1",
        "checkpoint": {"name": Path(given.checkpoint).name, "digest": net.digest},
        "static_digests": digests,
        "data": {"name": data.name, "split": data.split},
        "images": len(data),
        "backbone_accuracy": float(known.mean()),
        "fixed": [
            {"name": each.name, "cp": each.cp, "accuracy": float(each.right.mean())}
            for each in (*own, *alone)
        ],
        "points": [
            point(session, data, budget, confidence(plain), known, own, alone)
            for budget in default_budgets(reach)
        ],
    }
    publish(record, describe_processor(THREADS), given.json)


if __name__ == "__main__":
    main()
