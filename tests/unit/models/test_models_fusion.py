"""BatchNorms folded into convolutions: the same function with fewer layers, of any network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.support.residual_networks import (
    Bottleneck,
    Inverted,
    Patchwise,
    PreActivation,
    conv,
    make_images,
    make_plain,
    settled,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import ImageConfig
from fracskip.models import create_model
from fracskip.models.fusion import fused
from fracskip.models.steps import TracedNetwork
from fracskip.models.tracing import trace

IMAGE = ImageConfig(size=(12, 10))
SHAPE = (3, 12, 10)


class Idle(nn.Module):
    """A convolution whose values a sum takes, too, one called twice, and a norm of its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.norm = conv(3, 3), nn.BatchNorm2d(3)
        self.twice, self.after = conv(3, 3), nn.BatchNorm2d(3)
        self.stem, self.bare = conv(3, 3), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.taken(x)
        x = self.after(self.twice(self.twice(self.norm(y) + y)))
        bare, x = self.bare, self.stem(x)
        x = F.batch_norm(x, bare.running_mean, bare.running_var, bare.weight, bare.bias)
        return self.fc(x.mean((2, 3)))


class Hidden(nn.Module):
    """What it executes depends on the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = conv(3, 3), nn.BatchNorm2d(3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)
        return self.fc(x.mean((2, 3)))


def ours() -> nn.Module:
    torch.manual_seed(1)
    return settled(create_model("resnet14", 3, 5), make_images(8))


def hooked() -> nn.Module:
    net = ours()
    net.get_submodule("layer2").register_forward_hook(lambda module, given, x: 2 * x)
    return net


def traced() -> nn.Module:
    net = ours()
    return TracedNetwork(net, trace(net, SHAPE)).eval()


# How to make one, its BatchNorms, those that stay, and whether its own code still runs.
CASES: dict[str, tuple[Callable[[], nn.Module], int, int, bool]] = {
    "resnet14": (ours, 15, 0, True),
    "bottleneck": (lambda: make_plain(Bottleneck), 14, 0, True),
    "pre-activation": (lambda: make_plain(PreActivation), 9, 4, True),
    "inverted": (lambda: make_plain(Inverted), 13, 0, True),
    "patchwise": (lambda: make_plain(Patchwise), 1, 0, True),
    "no simple pairs": (lambda: settled(Idle(), make_images(8)), 3, 2, False),
    "traced": (traced, 15, 0, False),
    "hooked": (hooked, 15, 0, False),
    "untraceable": (lambda: settled(Hidden(), make_images(8)), 1, 1, True),
}


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.filterwarnings("ignore:forward hooks of 'layer2'")
@pytest.mark.parametrize("case", CASES)
def test_folding_norms_keeps_the_function(case: str) -> None:
    make, count, left, own = CASES[case]
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = fused(net, IMAGE)
    assert (norms(net), norms(twin)) == (count, left)
    assert isinstance(twin, type(net) if own else TracedNetwork)
    assert not any(value.requires_grad for value in twin.parameters())
    images = make_images(5)
    with torch.inference_mode():
        torch.testing.assert_close(twin(images), net(images), rtol=1e-4, atol=1e-4)
    # The network itself is left alone.
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
