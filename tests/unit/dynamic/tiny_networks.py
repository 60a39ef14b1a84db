"""Small dynamic networks with statistics and decisions worth looking at."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracskip.config import GateConfig, ImageConfig, ModelConfig, ModelSpec, QuantConfig
from fracskip.dynamic import DynamicNetwork, Exploration
from fracskip.models import create_model
from fracskip.models.resnet import CifarResNet

DEFAULT_OPTIONS = ("skip", "4", "8", "full")
SCHEMES = ["lsq", "paper"]
GATES = ["recurrent", "feedforward"]
COUNT = 6


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def exploration(seed: int = 0, **settings: object) -> Exploration:
    return Exploration(torch.Generator().manual_seed(seed), **settings)


def make_spec(
    options: str | Sequence[str | int] = DEFAULT_OPTIONS,
    *,
    model: str = "resnet14",
    scheme: str = "lsq",
    gate: str = "recurrent",
    budget_input: bool = False,
    size: tuple[int, int] = (8, 8),
    channels: int = 3,
    classes: int = 3,
    stream: str = "float",
    ends: str = "full",
    block_bias: bool = False,
) -> ModelSpec:
    return ModelSpec(
        model=ModelConfig(name=model),
        options=options,
        quant=QuantConfig(scheme=scheme, stream=stream, stem=ends, head=ends),
        gate=GateConfig(kind=gate, width=5, budget_input=budget_input, block_bias=block_bias),
        image=ImageConfig(
            size=size, channels=channels, mean=(0.5,) * channels, std=(1,) * channels
        ),
        class_names=tuple(f"class {index}" for index in range(classes)),
        data_name="random",
    )


def make_images(spec: ModelSpec, count: int = COUNT, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, spec.image.channels, *spec.image.size)
    # Images of unlike brightness, so that pooled features differ between them.
    offsets = torch.linspace(-2, 2, count)[:, None, None, None]
    return torch.randn(shape, generator=generator) + offsets


def make_backbone(spec: ModelSpec, seed: int = 0) -> CifarResNet:
    """A random backbone whose norms hold the statistics of `make_images` and uneven terms."""
    torch.manual_seed(seed)
    net = create_model(spec.model.name, spec.image.channels, len(spec.class_names))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # the statistics of one batch, as they are
        net.train()(make_images(spec, 8))
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def make_network(spec: ModelSpec, seed: int = 0) -> DynamicNetwork:
    """A calibrated network whose gates treat images differently."""
    return copy.deepcopy(_built(spec, seed))


@functools.cache
def _built(spec: ModelSpec, seed: int) -> DynamicNetwork:
    net = DynamicNetwork(make_backbone(spec, seed), spec)
    net.calibrate([make_images(spec, 8)])
    if net.gate is not None:
        torch.manual_seed(seed + 100)
        with torch.no_grad():
            for layer in net.gate.embed:
                layer.weight.normal_(0, 1.5)
            outs = net.gate.out if isinstance(net.gate.out, nn.ModuleList) else [net.gate.out]
            for out in outs:
                out.weight.normal_(0, 3)
                out.bias.normal_(0, 0.3)
    return net.eval()


def every_option(net: DynamicNetwork, count: int) -> Tensor:
    """Decisions in which each block's images take all options in turn."""
    images, blocks = torch.arange(count)[:, None], torch.arange(len(net.blocks))[None]
    return (images + 2 * blocks + images * blocks) % len(net.options)


@contextmanager
def counted_macs() -> Iterator[list[int]]:
    """Counts every convolution and linear layer that runs, rows included, whoever calls it."""
    conv2d, linear = F.conv2d, F.linear
    total = [0]

    def counting_conv(x: Tensor, weight: Tensor, *args: object) -> Tensor:
        y = conv2d(x, weight, *args)
        total[0] += y.numel() * weight[0].numel()
        return y

    def counting_linear(x: Tensor, weight: Tensor, *args: object) -> Tensor:
        total[0] += (x.numel() // x.shape[-1]) * weight.numel()
        return linear(x, weight, *args)

    F.conv2d, F.linear = counting_conv, counting_linear
    try:
        yield total
    finally:
        F.conv2d, F.linear = conv2d, linear
