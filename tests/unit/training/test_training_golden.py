"""A short loss trace of the joint stage: what a step computes may only change on purpose.

Weights and images come from numpy's frozen RandomState, and everything runs on one thread in
float32, so the values hold on every machine to within rounding. Where a change of the numerics
is meant, run this file with python to print the new ones.
"""

import numpy as np
import pytest
import torch

from fracskip.config import Recipe, recipe_from_dict
from fracskip.dynamic import build_network
from fracskip.training.joint import JointTraining
from fracskip.training.stages import StepIndex

STEPS = 3
CASES = {
    "price": {},
    "paper": {
        "quant": {"scheme": "paper"},
        "joint": {"objective": "paper", "gate_gradient": "dense", "beta": 1e-4},
    },
    "feedforward": {"gate": {"kind": "feedforward"}, "joint": {"uniform_rate": 0.25}},
}
# Of each step: mean loss and mean relative cost of the images that the gates routed, and the norm
# of the gates' gradient.
GOLDEN = {
    "price": [(3.61073, 0.21652, 3.91143), (5.67768, 0.35714, 4.00529), (1.32788, 0.0, 0.95573)],
    "paper": [(1.16461, 0.25223, 0.11852), (1.40111, 0.35714, 0.1422), (1.33964, 0.75, 0.1316)],
    "feedforward": [
        (1.08163, 0.05404, 0.90153),
        (1.39651, 0.01302, 1.65422),
        (0.80248, 0.01172, 2.61564),
    ],
}


def make_recipe(case: str) -> Recipe:
    changes = CASES[case]
    # Everything is said, so that another default is no other trace.
    joint = {
        "epochs": 1,
        "target": 0.1,
        "optim": {"lr": 3e-3, "weight_decay": 1e-4, "warmup": 0.05, "clip_norm": 1.0},
        "gate_lr": 0.05,
        "price_rate": 0.1,
        "descent": 0.0,
        "exploration": 1.0,
        "exploration_until": 0.6,
        "temperature": 2.0,
        "sample_rate": 0.25,
        "uniform_rate": 0.125,
    }
    tree = {
        "name": "golden",
        "seed": 7,
        "options": ["skip", 4, "full"],
        "model": {"name": "resnet8"},
        "data": {"image": {"size": [8, 8]}},
        **changes,
        "joint": {**joint, **changes.get("joint", {})},
    }
    return recipe_from_dict(tree)


def trace(case: str) -> list[tuple[float, float, float]]:
    recipe = make_recipe(case)
    spec = recipe.model_spec("abc", "golden")
    draw = np.random.RandomState(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(draw.standard_normal(shape)).float()

    net = build_network(spec)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.dim() == 4:
                value.copy_(normal(*value.shape) * (2 / value[0].numel()) ** 0.5)
            elif name.startswith("gate."):
                value.copy_(normal(*value.shape))
            elif "fc." in name:
                value.copy_(normal(*value.shape) / 10)
    net.calibrate([normal(16, 3, 8, 8)])
    net.train()
    stage = JointTraining(net, recipe, torch.device("cpu"), bf16=False)
    found = []
    for step in range(STEPS):
        labels = torch.from_numpy(draw.randint(0, 3, 16))
        result = stage.step(normal(16, 3, 8, 8), labels, StepIndex(0, step, step / STEPS))
        assert result.cost is not None
        assert net.gate is not None
        gradients = [p.grad.square().sum() for p in net.gate.parameters() if p.grad is not None]
        norm = float(torch.stack(gradients).sum().sqrt())
        found.append((result.loss / result.images, result.cost / result.images, norm))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_trace_is_the_golden_one(case: str) -> None:
    torch.set_num_threads(1)
    for found, expected in zip(trace(case), GOLDEN[case], strict=True):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        print(f'    "{case}": {[tuple(round(v, 5) for v in step) for step in trace(case)]},')
