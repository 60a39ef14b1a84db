"""Networks whose code depends on the images' size are for the size that they were traced on."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from tests.support.residual_networks import conv, same
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.dynamic.quantisation import quantize
from fracskip.errors import ConfigError
from fracskip.models.fusion import fused
from fracskip.models.sizes import other_sizes
from fracskip.models.steps import TracedNetwork
from fracskip.models.tracing import trace

SIZE = (12, 16)
Forward = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    """A stem and two layers for what is done between them, which is given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.stem, self.down, self.deep = conv(3, 8), nn.Conv2d(8, 8, 3, 2), conv(8, 8, stride=2)
        self.pool, self.unshuffle = nn.MaxPool2d(3, 2), nn.PixelUnshuffle(4)
        self.wide, self.fc = conv(48, 8), nn.Linear(8, 5)
        self.act = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self, x).mean((2, 3)))


def make(forward: Forward) -> Network:
    torch.manual_seed(0)
    return Network(forward).eval()


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def shuffled(x: Tensor) -> Tensor:
    count, channels, high, wide = x.shape
    return x.view(count, 2, channels // 2, high, wide).transpose(1, 2).reshape(x.shape)


def coordinates(x: Tensor) -> Tensor:
    return x * torch.linspace(0.5, 1.5, x.shape[3])


def larger(net: Network, x: Tensor) -> Tensor:
    if x.shape[2] > 2 * SIZE[0]:
        x = F.max_pool2d(x, 2)
    return net.stem(x)


def evened(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 1)) if x.shape[2] % 2 else x


FOR_ANY = {
    "convolutions": lambda n, x: n.down(F.relu(n.stem(x))),
    "'SAME' of stride 1": lambda n, x: F.conv2d(same(n.stem(x), 3, 1), n.down.weight),
    "constant zeros": lambda n, x: n.down(F.pad(n.stem(x), (0, 1, 0, 1))),
    "pools": lambda n, x: F.avg_pool2d(n.pool(n.stem(x)), 2),
    "a pool to a size": lambda n, x: n.down(F.adaptive_avg_pool2d(n.stem(x), (5, 4))),
    "a pool to a pixel": lambda n, x: F.adaptive_avg_pool2d(n.stem(x), 1),
    "flattened and averaged": lambda n, x: n.stem(x).flatten(2).mean(2)[..., None, None],
    "viewed and averaged": lambda n, x: n.stem(x).view(x.shape[0], 8, -1).mean(2)[..., None, None],
    "enlarged by a factor": lambda n, x: n.down(F.interpolate(n.stem(x), scale_factor=2)),
    "multiples of four": lambda n, x: n.wide(n.unshuffle(x)),
    "factors": lambda n, x: n.stem(x * 0.5 + 1),
}
FOR_ONE = {
    "'SAME'": lambda n, x: n.down(same(n.stem(x), 3, 2)),
    "'SAME' of the largest image alone": lambda n, x: n.deep(n.down(same(n.stem(x), 3, 2))),
    "'SAME' after strides": lambda n, x: n.down(same(n.deep(n.deep(n.stem(x))), 3, 2)),
    "a pool of the whole": lambda n, x: F.avg_pool2d(n.stem(x), tuple(x.shape[2:])),
    "a pool to half": lambda n, x: F.adaptive_max_pool2d(n.stem(x), x.shape[3] // 2),
    "channels shuffled": lambda n, x: n.down(shuffled(n.stem(x))),
    "a part": lambda n, x: n.stem(x)[:, :, : x.shape[2] // 2],
    "enlarged to a size": lambda n, x: F.interpolate(n.down(n.stem(x)), tuple(x.shape[2:])),
    "coordinates": lambda n, x: coordinates(n.stem(x)),
    "a mean by hand": lambda n, x: n.stem(x).sum((2, 3), keepdim=True) / x[0, 0].numel(),
    "zeros for odd sizes": lambda n, x: n.down(evened(n.stem(x))),
    "another way for large images": larger,
}


@pytest.mark.parametrize("forward", FOR_ANY.values(), ids=FOR_ANY)
def test_a_network_without_the_size_in_it_takes_any(forward: Forward) -> None:
    net = make(forward)
    traced = copy.deepcopy(net)
    graph = trace(traced, (3, *SIZE))
    assert graph.only is None
    for size in (SIZE, (20, 8), (36, 44)):
        wanted = net(images(size))
        torch.testing.assert_close(TracedNetwork(traced, graph)(images(size)), wanted)


def test_parameters_without_memory_are_the_same_at_every_size() -> None:
    """As where a file's outline is made before anything of it is loaded."""
    net = make(lambda n, x: n.stem(x) * n.gain)
    net.gain = nn.Parameter(torch.ones(1))
    assert trace(net.to("meta"), (3, *SIZE)).only is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", FOR_ONE.values(), ids=FOR_ONE)
def test_a_network_with_the_size_in_it_takes_that_alone(forward: Forward, training: bool) -> None:
    net = make(forward)
    wanted = net(images(SIZE))
    graph = trace(net, (3, *SIZE))
    assert graph.only == SIZE
    found = copy.deepcopy(TracedNetwork(net, graph)).train(training)
    assert torch.equal(found(images(SIZE)), wanted)
    for size in ((12, 17), (13, 16), (16, 12), (24, 32)):
        message = rf"size {re.escape(str(size))} do not fit: .* traced on \(12, 16\), .*; resize"
        with pytest.raises(ConfigError, match=message) as caught:
            found(images(size))
        assert "\n" not in str(caught.value)


def test_what_is_made_of_it_takes_that_alone() -> None:
    net = make(FOR_ONE["'SAME'"])
    dynamic = quantize(net, images(SIZE).repeat(4, 1, 1, 1))
    changed = net.down.register_forward_hook(lambda *each: each[2] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hook
        folded = fused(net, dynamic.spec.image)
    changed.remove()
    for each in (dynamic, dynamic.plain(), folded):
        each(images(SIZE))
        with pytest.raises(ConfigError, match=r"\b12, 17\) do not fit: .* traced on"):
            each(images((12, 17)))


@pytest.mark.parametrize("edge", [8, 12, 31, 32, 33, 64, 96, 192, 224, 240, 260, 299, 1024])
def test_every_halving_is_even_at_one_size_and_odd_at_the_other(edge: int) -> None:
    (other, _), twice = other_sizes((edge, edge))
    assert other > edge
    assert twice == (2 * edge, 2 * edge)
    one, two = edge, other
    for _ in range(6):
        assert one % 2 != two % 2
        one, two = -(-one // 2), -(-two // 2)
