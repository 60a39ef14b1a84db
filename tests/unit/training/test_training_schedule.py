import math

import pytest
import torch

from fracskip.config import OptimConfig
from fracskip.models import create_model
from fracskip.training.schedule import lr_factor, weight_optimiser


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (
            OptimConfig(schedule="cosine"),
            {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0},
        ),
        (
            # Up over a quarter, then half of what is left is at 5/8.
            OptimConfig(schedule="cosine", warmup=0.25),
            {0.0: 0.001 / 0.251, 0.125: 0.126 / 0.251, 0.25: 1.0, 0.5: 0.75, 0.625: 0.5},
        ),
        (
            OptimConfig(schedule="onecycle", warmup=0.2),
            {0.0: 0.001 / 0.201, 0.1: 0.101 / 0.201, 0.2: 1.0, 0.4: 0.75, 0.6: 0.5, 1.0: 0.0},
        ),
        (OptimConfig(schedule="onecycle"), {0.0: 1.0, 0.25: 0.75, 0.9: 0.1}),
        (
            OptimConfig(schedule="step"),
            {0.0: 1.0, 0.499: 1.0, 0.5: 0.1, 0.749: 0.1, 0.75: 0.01, 0.999: 0.01},
        ),
        (
            OptimConfig(schedule="step", warmup=0.1),
            {0.0: 0.001 / 0.101, 0.05: 0.051 / 0.101, 0.1: 1.0, 0.5: 0.1, 0.75: 0.01},
        ),
    ],
)
def test_hand_computed_factors(config: OptimConfig, values: dict[float, float]) -> None:
    for progress, expected in values.items():
        assert lr_factor(config, progress) == pytest.approx(expected, abs=1e-12), progress


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_a_factor_rises_once_then_only_falls(schedule: str, warmup: float) -> None:
    config = OptimConfig(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    factors = [lr_factor(config, step / 400) for step in range(400)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = math.ceil(400 * warmup)
    assert factors[:peak] == sorted(factors[:peak])
    if schedule != "step" or warmup < 0.5:
        assert factors[peak] == pytest.approx(1.0, abs=0.01)
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_only_convolutions_and_the_classifier_decay(make_net) -> None:
    for net in (create_model("resnet8", 3, 3), make_net()):
        named = dict(net.named_parameters())
        config = OptimConfig(lr=0.3, weight_decay=0.01, momentum=0.8)
        decaying, free = weight_optimiser(named.items(), config).param_groups
        names = {id(value): name for name, value in named.items()}
        decayed = {names[id(value)] for value in decaying["params"]}
        exempt = {names[id(value)] for value in free["params"]}
        assert (decaying["weight_decay"], free["weight_decay"]) == (0.01, 0)
        assert decayed | exempt == set(named)
        assert not decayed & exempt
        for name, value in named.items():
            is_convolution = value.dim() == 4
            assert (name in decayed) == (is_convolution or name.endswith("fc.weight")), name
    # The dynamic network has all kinds that must be exempt.
    for kind in ("bn1.weight", "fc.bias", "option_weight", "weight_step", "activation_step"):
        assert any(name.endswith(kind) for name in exempt), kind


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_is_sgd_with_nesterov_momentum(momentum: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0]]))
    config = OptimConfig(lr=0.1, momentum=momentum, weight_decay=0.5)
    optimiser = weight_optimiser([("fc.weight", weight)], config)
    for _ in range(2):
        optimiser.zero_grad()
        weight.square().sum().backward()
        optimiser.step()
    # By hand: g = 2w + 0.5w; v = m v + g; w -= 0.1 (g + m v), with v = g at first.
    w, v = 1.0, 0.0
    for _ in range(2):
        g = 2.5 * w
        v = momentum * v + g
        w -= 0.1 * (g + momentum * v)
    assert weight.item() == pytest.approx(w, rel=1e-6)
