"""Torch on an int8 stream against integers: docs/bundle.md computed in NumPy from the raw state.

Torch multiplies floats that stand for integers, so a sum that lies within rounding error of a
half may fall to the other side: at most one level, in fewer than 2 of 1,000 values of a block.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_networks import make_images, make_network, make_spec

from fracskip.dynamic import DynamicNetwork
from fracskip.options import Option

RATE = 2e-3
Array = NDArray[np.float64]
OPTIONS = ("skip", "4", "8", "full")
FIRST = "layer1.0"
GATED = ("layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")
STAGE = {"layer1": 0, "layer2": 1, "layer3": 2}


def network(seed: int) -> DynamicNetwork:
    net = make_network(make_spec(OPTIONS, stream="int8"), seed)
    torch.manual_seed(seed)
    with torch.no_grad():  # as if trained: options apart from one another, gains of both signs
        for name, value in net.named_parameters():
            if "option_" in name:
                value.add_(0.2 * torch.randn_like(value))
            if name.endswith(("_step", "steps")):
                value.mul_(1 + 0.1 * torch.rand_like(value))
    return net


def convolve(q: NDArray[np.int64], w: NDArray[np.int64], stride: int) -> NDArray[np.int64]:
    """Exact sums over (B, I, H, W) with padding for the same size, one tap at a time."""
    pad, size = w.shape[2] // 2, q.shape[2]
    padded = np.pad(q, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total: NDArray[np.int64] = np.zeros((), np.int64)
    for row in range(w.shape[2]):
        for column in range(w.shape[3]):
            part = padded[:, :, row : row + size : stride, column : column + size : stride]
            total = total + np.einsum("bihw,oi->bohw", part, w[:, :, row, column])
    return total


class Integers:
    """The plan's arithmetic. Slots: 4 bits 0, 8 bits 1; fixed parts have slot 0 alone."""

    def __init__(self, net: DynamicNetwork) -> None:
        self.state = {key: value.double().numpy() for key, value in net.state_dict().items()}
        self.steps = np.float32(self.state["stream.steps"])

    def conv(self, name: str, slot: int, taken: float, given: float) -> tuple[Array, Array, Array]:
        """Integer weights, scale and bias (float32) of a convolution and its norm."""
        s = self.state
        conv, norm = f"backbone.{name[0]}", f"backbone.{name[1]}"
        step = np.float32(s[f"{conv}.quantiser.weight_step"][slot])
        bound = 7 if len(s[f"{conv}.quantiser.weight_step"]) == 2 and slot == 0 else 127
        weight = np.float32(s[f"{conv}.weight"]) * (np.float32(1) / step)[:, None, None, None]
        q = np.clip(np.rint(weight), -bound, bound).astype(np.int64)
        rows = len(s[f"{norm}.option_weight"])
        of = {k: s[f"{norm}.option_{k}"][slot] if rows else s[f"{norm}.{PLAIN[k]}"] for k in PLAIN}
        gain = of["weight"] / np.sqrt(of["var"] + 1e-5)
        bias = (of["bias"] - of["mean"] * gain) / given
        return q, np.float32(step * gain * taken / given), np.float32(bias)

    def block(self, name: str, r: NDArray[np.int64], option: str, entry: int) -> NDArray[np.int64]:
        s, leave = self.state, STAGE[name[:6]]
        slot = 0 if name == FIRST or option == "4" else 1
        stride = 1 if entry == leave else 2
        unit, out = float(self.steps[entry]), float(self.steps[leave])
        shortcut = np.float32(r)
        if entry != leave:
            pair = (f"{name}.downsample.0", f"{name}.downsample.1")
            w, scale, bias = self.conv(pair, 0, unit, out)
            shortcut = apply(convolve(r, w, stride), scale, bias)
        if option == "skip":
            return r if entry == leave else levels(shortcut, 255)
        inner = float(np.float32(s[f"backbone.{name}.conv2.quantiser.activation_step"][slot, 0]))
        q, taken = r, unit
        if option == "4":
            own = np.float32(s[f"backbone.{name}.conv1.quantiser.activation_step"][0, 0])
            q = levels(np.float32(r) * self.steps[entry] * (np.float32(1) / own), 15)
            taken = float(own)
        w, scale, bias = self.conv((f"{name}.conv1", f"{name}.bn1"), slot, taken, inner)
        q = levels(apply(convolve(q, w, stride), scale, bias), 15 if option == "4" else 255)
        w, scale, bias = self.conv((f"{name}.conv2", f"{name}.bn2"), slot, inner, out)
        return levels(apply(convolve(q, w, 1), scale, bias) + shortcut, 255)


PLAIN = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def apply(total: NDArray[np.int64], scale: Array, bias: Array) -> NDArray[np.float32]:
    return np.float32(total) * scale[:, None, None] + bias[:, None, None]


def levels(y: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    return np.clip(np.rint(y), 0, top).astype(np.int64)


def read(net: DynamicNetwork, x: torch.Tensor, stage: int) -> NDArray[np.int64]:
    """A stream's levels; values must lie on the grid."""
    assert net.stream is not None
    found = x.double().numpy() / net.stream.step(stage).double().detach().numpy()
    whole = np.rint(found)
    np.testing.assert_allclose(found, whole, atol=1e-4)
    assert whole.min() >= 0
    assert whole.max() <= 255
    return whole.astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("option", ["8", "4", "skip"])
@torch.no_grad()
def test_blocks_agree_with_integers(option: str, seed: int) -> None:
    net = network(seed)
    plan, entry = Integers(net), 0
    x = net.sections.stem(make_images(net.spec, 12, seed))
    wanted = plan.block(FIRST, read(net, x, 0), "8", 0)
    x = net.begin(make_images(net.spec, 12, seed))
    compare(read(net, x, 0), wanted)
    for name, block in zip(GATED, net.blocks, strict=True):
        before = read(net, x, entry)
        x = block.execute(x, Option.parse(option))
        leave = STAGE[name[:6]]
        compare(read(net, x, leave), plan.block(name, before, option, entry))
        entry = leave


def compare(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> None:
    assert found.shape == wanted.shape
    assert len(np.unique(found)) > 20  # something flows
    np.testing.assert_allclose(found, wanted, atol=1, rtol=0)
    assert (found != wanted).mean() < RATE


@torch.no_grad()
def test_the_whole_network_at_8_bits_agrees_with_integers() -> None:
    net = network(2)
    plan, images = Integers(net), make_images(net.spec, 12, 5)
    r, entry = plan.block(FIRST, read(net, net.sections.stem(images), 0), "8", 0), 0
    for name in GATED:
        r = plan.block(name, r, "8", entry)
        entry = STAGE[name[:6]]
    features = r.mean((2, 3)) * float(plan.steps[2])
    head = plan.state["backbone.fc.weight"], plan.state["backbone.fc.bias"]
    wanted = features @ head[0].T + head[1]
    found = net(images, decisions=net.forced("8", 12)).logits.numpy()
    spread = wanted.std()
    np.testing.assert_allclose(found, wanted, atol=0.02 * spread, rtol=0)
