"""What people write in `forward`, traced: the same values, and blocks where they stand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.residual_networks import conv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from fracskip.errors import ConfigError
from fracskip.models.graph import Graph
from fracskip.models.steps import TracedNetwork
from fracskip.models.structure import find_blocks
from fracskip.models.tracing import trace

IMAGE = (3, 12, 10)
Forward = Callable[[Any, Tensor], Tensor]


def make_images(count: int = 4) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(0))


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Block(nn.Module):
    """Layers for every idiom; what is done with them is given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv(8, 8), conv(8, 8), nn.BatchNorm2d(8)
        self.relu, self.none, self.sum = nn.ReLU(inplace=True), nn.Sequential(), Sum()
        self.drop = nn.Dropout(0.5, inplace=True)
        self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.act = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def plain_head(net: Any, x: Tensor) -> Tensor:
    return net.fc(x.mean((2, 3)))


class Network(nn.Module):
    def __init__(self, block: Forward, head: Forward = plain_head) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.body = nn.Sequential(*(Block(block) for _ in range(3)))
        self.fc, self.head = nn.Linear(8, 5), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.body(self.stem(x)))


def make(block: Forward, head: Forward = plain_head) -> nn.Module:
    torch.manual_seed(0)
    net = Network(block, head)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def same(net: nn.Module, wanted: Tensor | None = None) -> Graph:
    """Traces a network, whose logits stay what they were to the bit, and its copies', too."""
    images = make_images()
    with torch.no_grad():
        wanted = net(images.clone()) if wanted is None else wanted
        graph = trace(net, IMAGE)
        found = TracedNetwork(net, graph)
        assert torch.equal(found(images), wanted)
        assert torch.equal(copy.deepcopy(found)(images), wanted)
    return graph


def residual(change: Forward) -> Forward:
    return lambda block, x: x + block.b(change(block, x))


def statement(change: Callable[[Any, Tensor], Any]) -> Forward:
    """Something that is done to a value, whose result is left alone."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y = block.a(x)
        change(block, y)
        return y

    return residual(forward)


def kept(block: Any, y: Tensor) -> Tensor:
    """A view that is read after what it views was changed."""
    view = y.flatten(2)
    block.relu(y)
    return y + view.view_as(y)


def copied(y: Tensor) -> Tensor:
    return y + y.clone().mul_(3.0)


def gated(y: Tensor) -> Tensor:
    return y * torch.sigmoid(y)


def assigned(block: Any, y: Tensor) -> None:
    y[:, 0] = 0.5


def early(block: Any, x: Tensor) -> Tensor:
    y = block.a(x)
    x.mul_(0.5)
    return x + block.b(y)


def added(block: Any, x: Tensor) -> Tensor:
    out = block.norm(block.b(block.a(x)))
    out += x
    return block.relu(out)


def scaled(block: Any, x: Tensor) -> Tensor:
    out = block.b(block.relu(block.a(x)))
    out.add_(x, alpha=0.5)
    return out


def squeezed(pool: Callable[[Tensor], Tensor], spread: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def forward(block: Any, x: Tensor) -> Tensor:
        y = block.a(x)
        gate = block.excite(F.relu(block.squeeze(pool(y)))).sigmoid()
        return y * spread(gate, y)

    return residual(forward)


def pooled(y: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(y, 1)


def checked(block: Any, x: Tensor) -> Tensor:
    if x.shape[1] != block.a.in_channels or x.dim() != 4:
        raise ValueError("other channels")
    assert x.shape[2] > 1
    return x + block.b(block.a(x))


# What a block does; every one is found as a residual block.
BLOCKS: dict[str, Forward] = {
    "relu in place in front": residual(lambda m, x: m.a(m.relu(x))),
    "F.relu in place in front": residual(lambda m, x: m.a(F.relu(x, inplace=True))),
    "relu in place after": residual(lambda m, x: m.relu(m.a(x))),
    "relu as a statement": statement(lambda m, y: m.relu(y)),
    "F.relu_ as a statement": statement(lambda m, y: F.relu_(y)),
    "mul_ and clamp_": statement(lambda m, y: y.mul_(0.5).clamp_(0, 6)),
    "a view in place": statement(lambda m, y: y[:, :4].mul_(2.0)),
    "an element in place": statement(assigned),
    "a view kept": residual(lambda m, x: kept(m, m.a(x))),
    "a copy in place": residual(lambda m, x: copied(m.a(x))),
    "the input in place": early,
    "add_ with a factor": scaled,
    "+= and relu": added,
    "a sum of its own": lambda m, x: m.sum(m.none(x), m.b(m.a(x))),
    "sum of a list": lambda m, x: sum([x, m.b(m.a(x))]),
    "torch.add with alpha": lambda m, x: torch.add(x, m.b(m.a(x)), alpha=0.25),
    "type_as": residual(lambda m, x: m.a(x).type_as(x)),
    "float()": residual(lambda m, x: m.a(x).float()),
    "contiguous and detach": residual(lambda m, x: m.a(x).contiguous().detach()),
    "divided": residual(lambda m, x: m.a(x) / 1.41),
    "layer scale": residual(lambda m, x: m.gamma[None, :, None, None] * m.a(x)),
    "swish by hand": residual(lambda m, x: gated(m.a(x))),
    "shapes checked": checked,
    "empty Sequential": residual(lambda m, x: m.none(m.a(x))),
    "dropout in place": residual(lambda m, x: m.drop(m.a(x))),
    "SE by view": squeezed(lambda y: pooled(y).view(y.size(0), y.size(1)),
                           lambda g, y: g.view(y.size(0), y.size(1), 1, 1)),
    "SE by expand_as": squeezed(lambda y: y.mean([2, 3]),
                                lambda g, y: g[:, :, None, None].expand_as(y)),
    "SE by flatten": squeezed(lambda y: pooled(y).flatten(1),
                              lambda g, y: g.unsqueeze(-1).unsqueeze(-1)),
}  # fmt: skip

HEADS: dict[str, Forward] = {
    "view, size late": lambda m, x: m.fc(pooled(x).view(x.size(0), -1)),
    "view, -1 first": lambda m, x: m.fc(pooled(x).view(-1, 8)),
    "reshape by shape": lambda m, x: m.fc(pooled(x).reshape(x.shape[0], x.shape[1])),
    "flatten": lambda m, x: m.fc(torch.flatten(pooled(x), 1)),
    "squeeze": lambda m, x: m.fc(pooled(x).squeeze(-1).squeeze(-1)),
    "mean of a list": lambda m, x: m.fc(x.mean([2, 3])),
    "mean of negative places": lambda m, x: m.fc(x.mean((-2, -1))),
    "mean over the flat map": lambda m, x: m.fc(x.flatten(2).mean(-1)),
    "avg_pool2d of the whole map": lambda m, x: m.fc(F.avg_pool2d(x, x.shape[2:]).flatten(1)),
    "avg_pool2d by number": lambda m, x: m.fc(F.avg_pool2d(x, (12, 10)).view(x.size(0), 8)),
    "dropout": lambda m, x: m.fc(F.dropout(x.mean((2, 3)), 0.3, m.training)),
    "logits changed": lambda m, x: m.fc(x.mean((2, 3))).mul_(2.0),
}


@pytest.mark.parametrize("idiom", BLOCKS)
def test_blocks_are_what_they_were(idiom: str) -> None:
    net = make(BLOCKS[idiom])
    same(net)
    found = find_blocks(make(BLOCKS[idiom]), IMAGE)
    assert [block.name for block in found.blocks] == ["body.1", "body.2"]
    assert all(block.can_be_skipped for block in found.blocks)


@pytest.mark.parametrize("idiom", HEADS)
def test_heads_are_what_they_were(idiom: str) -> None:
    same(make(BLOCKS["+= and relu"], HEADS[idiom]))


def test_the_number_of_images_early_hides_no_block() -> None:
    class Early(Network):
        def forward(self, x: Tensor) -> Tensor:
            count = x.size(0)
            x = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 1.41
            return self.fc(pooled(self.body(self.stem(x))).view(count, -1))

    torch.manual_seed(0)
    net = Early(BLOCKS["+= and relu"]).eval()
    graph = same(net)
    assert [node.op for node in graph.nodes[:3]] == ["images", "tensor", "sub"]
    assert [block.name for block in find_blocks(net, IMAGE).blocks] == ["body.1", "body.2"]


# -- what a layer carries beyond its class --------------------------------------------------------


def weight_norm(net: Any) -> None:
    parametrizations.weight_norm(net.body[1].a)


def spectral_norm(net: Any) -> None:
    parametrizations.spectral_norm(net.body[1].a)
    net.eval()


def pruned(net: Any) -> None:
    prune.l1_unstructured(net.body[1].a, "weight", 0.5)


def pruned_bias(net: Any) -> None:
    prune.l1_unstructured(net.fc, "bias", 2)


def orthogonal(net: Any) -> None:
    parametrizations.orthogonal(net.body[1].squeeze)


class Standardised(nn.Conv2d):
    """Weights without mean and of one variance, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias, 1, 1)


def standardised(net: Any) -> None:
    net.body[1].a = Standardised(8, 8, 3, padding=1)


COMPUTED = {
    "body.1.a": [weight_norm, spectral_norm, pruned, standardised],
    "fc": [pruned_bias],
}


@pytest.mark.parametrize(
    ("change", "path"), [(change, path) for path, found in COMPUTED.items() for change in found]
)
def test_computed_weights_are_folded_and_that_is_said(change: Any, path: str) -> None:
    net = make(BLOCKS["layer scale"])
    change(net)
    images = make_images()
    wanted = net(images).detach()
    with pytest.warns(UserWarning, match=f"weights of '{path}' are computed .* folded"):
        found = find_blocks(net, IMAGE)
    assert torch.equal(TracedNetwork(net, found.graph)(images).detach(), wanted)
    layer: Any = net.get_submodule(path)
    assert type(layer) is (nn.Linear if path == "fc" else nn.Conv2d)
    assert "weight" in dict(layer.named_parameters())
    assert [block.name for block in found.blocks] == ["body.1", "body.2"]


def doubled(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out * 2


def halved(module: nn.Module, args: Any) -> Any:
    return (args[0] / 2,)


def patched(net: Any) -> None:
    old = net.body[1].a.forward
    net.body[1].a.forward = lambda x: old(x) * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.body[1].a.register_forward_hook(doubled),
        lambda net: net.body[1].register_forward_hook(doubled),
        lambda net: net.stem.register_forward_pre_hook(halved),
        patched,
    ],
)
def test_what_hooks_change_is_kept_and_that_is_said(change: Any) -> None:
    net = make(BLOCKS["+= and relu"])
    change(net)
    images = make_images()
    wanted = net(images).detach()
    with pytest.warns(UserWarning, match="forward hooks of .* not called again"):
        graph = trace(net, IMAGE)
    assert torch.equal(TracedNetwork(net, graph)(images).detach(), wanted)


def test_a_hook_that_looks_on_is_taken_off() -> None:
    net, seen = make(BLOCKS["+= and relu"]), []
    net.stem.register_forward_hook(lambda *each: seen.append(each))
    with pytest.warns(UserWarning, match="forward hooks of 'stem'"):
        graph = trace(net, IMAGE)
    count = len(seen)
    TracedNetwork(net, graph)(make_images())
    assert len(seen) == count


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Batchwise(nn.BatchNorm2d):
    """As timm's: an activation with weights inside of a norm."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.act = nn.PReLU(count)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


@pytest.mark.parametrize(
    ("path", "layer", "state"),
    [
        ("body.1.a", Twice(8, 8, 3, padding=1), {"weight", "bias"}),
        ("body.1.a", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), {"weight", "bias"}),
        ("body.1.a", nn.Conv2d(8, 8, 3, padding="same"), {"weight", "bias"}),
        ("body.1.norm", Batchwise(8), {"weight", "bias", "running_mean", "running_var",
                                       "num_batches_tracked", "act.weight"}),
        ("body.1.norm", nn.SyncBatchNorm(8), {"weight", "bias", "running_mean", "running_var",
                                              "num_batches_tracked"}),
    ],
)  # fmt: skip
def test_a_layer_that_computes_more_is_a_plain_one_and_the_rest(
    path: str, layer: nn.Module, state: set[str]
) -> None:
    net = make(BLOCKS["+= and relu"])
    net.set_submodule(path, layer.eval())
    keys, fresh = net.state_dict().keys(), copy.deepcopy(net)
    same(net)
    assert net.get_submodule(path).state_dict().keys() == state
    assert net.state_dict().keys() == keys
    assert type(net.get_submodule(path)) in (nn.Conv2d, nn.BatchNorm2d)
    assert [block.name for block in find_blocks(fresh, IMAGE).blocks] == ["body.1", "body.2"]


def test_a_norm_of_a_flat_value_is_a_layer() -> None:
    net = make(BLOCKS["+= and relu"])
    net.fc = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).eval()
    graph = same(net)
    assert [node.path for node in graph.nodes if node.op == "batch_norm"][-1] == "fc.1"


# -- dropout ---------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Known by its name, as torchvision's and timm's are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.training else x


def dropped(kind: str) -> nn.Module:
    def forward(block: Any, x: Tensor) -> Tensor:
        y = block.a(x)
        if kind == "functional":
            return x + F.dropout(y, 0.5, block.training)
        return x + (block.path(y) if kind == "path" else block.drop(y))

    net = make(forward)
    for block in net.body:  # type: ignore[union-attr]
        block.path = DropPath().eval()
    return net


@pytest.mark.parametrize("kind", ["module", "functional", "path"])
def test_dropout_is_active_in_training(kind: str) -> None:
    net = dropped(kind)
    graph = same(net)
    assert [node.op for node in graph.nodes].count("dropout") == 3
    found = TracedNetwork(net, graph)
    images, kept = make_images(), found(make_images())
    torch.manual_seed(1)
    moved = found.train()(images)
    assert not torch.allclose(moved, kept)
    if kind == "path":  # every branch is dropped
        torch.testing.assert_close(moved, net.fc(net.stem(images).mean((2, 3))))  # type: ignore[operator]
    assert torch.equal(found.eval()(images), kept)


# -- what is refused -------------------------------------------------------------------------------


class Counting(Network):
    def __init__(self) -> None:
        super().__init__(BLOCKS["+= and relu"])
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def by_batch(net: Any) -> nn.Module:
    net.body[1].norm = nn.BatchNorm2d(8, track_running_stats=False).eval()
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: make(residual(lambda m, x: m.a(x) if x.mean() > 0 else x)),
         "Network cannot be traced on .*register_adapter"),
        (lambda: make(BLOCKS["+= and relu"], lambda m, x: m.fc(x.mean((2, 3))).tolist()),
         "Network cannot be traced on"),
        (lambda: make(BLOCKS["+= and relu"], lambda m, x: (m.fc(x.mean((2, 3))),)),
         "gives tuple, not one tensor"),
        (lambda: make(BLOCKS["+= and relu"], lambda m, x: {"out": m.fc(x.mean((2, 3)))}),
         "gives dict, not one tensor"),
        (lambda: make(BLOCKS["+= and relu"], lambda m, x: m.fc(torch.zeros(1, 8))),
         "does not depend on its images"),
        (lambda: make(BLOCKS["+= and relu"], lambda m, x: F.dropout(m.fc(x.mean((2, 3))), 0.5)),
         "draws random numbers in evaluation mode .*training=self.training"),
        (lambda: Counting().eval(), "changes its buffer calls and computes with it"),
        (lambda: by_batch(make(BLOCKS["+= and relu"])),
         r"body.1.norm normalises by the statistics of the batch .*track_running_stats"),
    ],
)  # fmt: skip
def test_what_can_not_be_followed_is_refused(net: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trace(net(), IMAGE)


def test_nothing_is_said_of_a_plain_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(make(BLOCKS["+= and relu"]), IMAGE)
