"""From nodes of a traced network to operations of a bundle.

Every node is known by its operation; what is not known, or means something else here, is refused
by name. Channels come last in a bundle, so permutations disappear; BatchNorms and activations go
into the convolution before them where nothing else sees what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fracskip.deployment.drafting import ProgramDraft
from fracskip.deployment.lowered import Layout, Lowered, Scaled, Value, Weighted
from fracskip.models.graph import Graph, Node
from fracskip.models.padding import NO_PADDING, Padding, added, padding_of, zeros_around
from fracskip.models.structure import bounds, is_identity, never_negative
from fracskip.runtime.operations import (
    Act,
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    MeanOp,
    NormOp,
    PoolOp,
)

ACTS: dict[str, Act] = {
    "relu": "relu", "relu6": "relu6", "hardsigmoid": "hardsigmoid", "hardswish": "hardswish",
    "sigmoid": "sigmoid", "silu": "silu", "gelu": "gelu",
}  # fmt: skip
CLAMPS: dict[tuple[float | None, float | None], Act] = {(0.0, None): "relu", (0.0, 6.0): "relu6"}


def lower(
    net: nn.Module,
    graph: Graph,
    nodes: Sequence[Node],
    entry: Node,
    output: Node,
    taken: Value,
) -> Lowered:
    """Lowers consecutive nodes.

    Args:
        net: The network.
        graph: Its graph.
        nodes: The nodes, in order.
        entry: The node whose value the program takes.
        output: The node whose value it gives.
        taken: That value.

    Raises:
        ConfigError: naming the node that has no place in a bundle.
    """
    lowering = _Lowering(net, graph, entry, taken)
    for node in nodes:
        lowering.add(node)
    return lowering.finished(output)


class _Lowering(ProgramDraft):
    """Adds nodes one by one, each by what does its operation."""

    def __init__(self, net: nn.Module, graph: Graph, entry: Node, taken: Value) -> None:
        super().__init__(net, graph, entry, taken)
        self._does: dict[str, Any] = {
            "conv2d": self._conv, "linear": self._linear, "batch_norm": self._batch_norm,
            "layer_norm": self._layer_norm, "add": self._binary, "mul": self._binary,
            "sub": self._difference, "div": self._quotient, "rsub": self._difference,
            "neg": self._negative, "reshape": self._reshape, "flatten": self._reshape,
            "squeeze": self._reshape, "unsqueeze": self._reshape, "expand": self._expand,
            "expand_as": self._expand, "permute": self._permute, "mean": self._mean,
            "adaptive_avg_pool2d": self._adaptive, "avg_pool2d": self._mean_pool,
            "max_pool2d": self._max_pool, "constant_pad_nd": self._pad, "pad": self._pad,
        }  # fmt: skip

    # -- nodes -----------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        """Lowers one node."""
        act = ACTS.get(node.op) or CLAMPS.get(
            bounds(node) if node.op in ("clamp", "clamp_min", "hardtanh") else (None, None)
        )
        if is_identity(node):
            self._pass_through(node)
        elif self._is_own_gate(node):
            self._same(node)
        elif act is not None:
            if (approximate := node.kwargs.get("approximate", "none")) != "none":
                self._refuse(node, f"its approximation {approximate!r} is none of a bundle's")
            self._activate(node, act)
        elif node.op in self._does:
            self._does[node.op](node)
        else:
            self._refuse(node, "no operation of a bundle does what it does")

    def _is_own_gate(self, node: Node) -> bool:
        """Whether a node is the sigmoid of x * sigmoid(x), which is lowered with the product."""
        users = self._graph.users(node)
        gated = node.op == "sigmoid" and [user.op for user in users] == ["mul"]
        return gated and set(users[0].inputs) == {node.index, *node.inputs}

    def _conv(self, node: Node) -> None:
        layer, value = self._layer(node), self._unpadded(node)
        assert isinstance(layer, nn.Conv2d)
        if value.layout != "first":
            self._refuse(node, "its channels do not come first")
        op = ConvOp(
            inputs=(value.index,),
            channels=(layer.in_channels, layer.out_channels),
            kernel=_pair(layer.kernel_size),
            stride=_pair(layer.stride),
            padding=added(padding_of(layer), value.padding),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
            act="none",
        )
        self._give(node, op, Weighted(node.path, layer), value.layout)

    def _linear(self, node: Node) -> None:
        layer, value = self._layer(node), self._taken(node)
        assert isinstance(layer, nn.Linear)
        one, kernel, layout = (1, 1), (1, 1), value.layout
        if value.layout == "first":
            if math.prod(value.shape) != layer.in_features:
                self._refuse(node, "it mixes other values than channels")
            kernel, layout = _pair(value.shape[2:]), "flat"  # of what `_reshape` left as it was
        channels = (layer.in_features // math.prod(kernel), layer.out_features)
        op = ConvOp(
            inputs=(value.index,), channels=channels, kernel=kernel, stride=one,
            padding=NO_PADDING, dilation=one, groups=1, act="none",
        )  # fmt: skip
        self._give(node, op, Weighted(node.path, layer), layout)

    def _layer(self, node: Node) -> nn.Module:
        if not node.path:
            self._refuse(node, "its weights are computed, or no layer's")
        return self._net.get_submodule(node.path)

    def _pad(self, node: Node) -> None:
        """Zeros around an image, for whoever takes it to add."""
        value, around = self._unpadded(node), zeros_around(node)
        if around is None or value.layout != "first":
            self._refuse(node, "it adds something else than zeros around height and width")
        found = replace(value, shape=node.shape, padding=added(value.padding, around))
        self._values[node.index] = found

    def _batch_norm(self, node: Node) -> None:
        norm: Any = self._layer(node) if node.path else None
        if norm is None or not (norm.affine and norm.track_running_stats):
            self._refuse(node, "it has no terms or no statistics of its own")
        value, before = self._taken(node), self._producer(node)
        if value.layout == "last" or len(value.shape) == 3:
            self._refuse(node, "its channels do not come first")
        if before is not None:
            source = self._sources[before]
            if isinstance(source, Weighted) and source.norm is None:
                if self._ops[before].act == "none":  # type: ignore[union-attr]
                    self._sources[before] = Weighted(source.path, source.layer, norm)
                    self._same(node)
                    return
        op = AffineOp(inputs=(value.index,), channels=value.channels)
        self._give(node, op, norm, value.layout)

    def _layer_norm(self, node: Node) -> None:
        value, over = self._taken(node), tuple(node.args[1])
        if value.layout == "first" or over != (value.channels,):
            self._refuse(node, "it normalises over more than channels")
        gain, bias = (
            self._constant(node.argument(place, name))
            for place, name in ((2, "weight"), (3, "bias"))
        )
        ones = torch.ones(value.channels)
        eps = float(node.argument(4, "eps", 1e-5))
        op = NormOp(inputs=(value.index,), channels=value.channels, eps=eps)
        terms = Scaled(ones if gain is None else gain, 0 * ones if bias is None else bias)
        self._give(node, op, terms, value.layout)

    def _activate(self, node: Node, act: Act) -> None:
        value, before = self._taken(node), self._producer(node)
        if before is not None:
            producer = self._ops[before]
            if isinstance(producer, ConvOp) and producer.act == "none":
                self._ops[before] = producer.model_copy(update={"act": act})
                self._same(node)
                return
        self._give(node, ActOp(inputs=(value.index,), act=act), layout=value.layout)

    # -- sums and products -----------------------------------------------------------------------

    def _binary(self, node: Node) -> None:
        op: Literal["add", "mul"] = "add" if node.op == "add" else "mul"
        first, second = (self._known(each) for each in node.args)
        if first is None or second is None:
            value, given = (first, node.args[1]) if second is None else (second, node.args[0])
            terms = self._terms(node, value, given)
            self._affine(node, value, terms, None) if op == "mul" else self._affine(
                node, value, None, terms
            )
            return
        gates = [self._is_own_gate(self._graph[each.node]) for each in node.args]
        if op == "mul" and any(gates):
            self._give(node, ActOp(inputs=(first.index,), act="silu"), layout=first.layout)
            return
        if first.layout != second.layout:
            self._refuse(node, "its two values have their channels in different places")
        if first.is_pixel and not second.is_pixel:
            first, second = second, first
        if second.shape != first.shape and not (
            second.is_pixel and second.channels == first.channels
        ):
            self._refuse(node, f"values of {first.shape} and {second.shape} do not meet there")
        inputs = (first.index, second.index)
        self._give(node, BinaryOp(op=op, inputs=inputs), layout=first.layout)

    def _difference(self, node: Node) -> None:
        """X - c or c - x, c being constant."""
        taken, other = node.args if node.op == "sub" else reversed(node.args)
        if node.kwargs:
            self._refuse(node, "it scales what it takes away")
        value, ones = self._known(taken), None
        if value is not None:
            self._affine(node, value, None, self._terms(node, value, other, -1.0))
            return
        value = self._known(other)
        if value is not None:
            ones = torch.full((value.channels,), -1.0, dtype=torch.float64)
        self._affine(node, value, ones, self._terms(node, value, taken))

    def _quotient(self, node: Node) -> None:
        """X / c, c being constant."""
        value = self._known(node.args[0])
        terms = self._terms(node, value, node.args[1])
        self._affine(node, value, terms.reciprocal(), None)

    def _negative(self, node: Node) -> None:
        value = self._taken(node)
        self._affine(node, value, torch.full((value.channels,), -1.0, dtype=torch.float64), None)

    def _terms(self, node: Node, value: Value | None, given: Any, factor: float = 1.0) -> Tensor:
        """A constant of each channel, float64 (C,)."""
        other = self._constant(given)
        if value is None or other is None:
            self._refuse(node, "one of its values is neither computed nor a constant")
        place = {"last": 0, "first": len(value.shape) - 2, "flat": 0}[value.layout]
        wide = other.reshape(other.shape if other.dim() > place else (1,) * (place + 1))
        per_channel = wide.numel() == wide.shape[-1 - place]
        if not per_channel or wide.numel() not in (1, value.channels):
            self._refuse(node, f"its constant of shape {tuple(other.shape)} is not one a channel")
        return factor * wide.reshape(-1).double().expand(value.channels)

    def _affine(
        self, node: Node, value: Value | None, gain: Tensor | None, bias: Tensor | None
    ) -> None:
        assert value is not None
        affine = AffineOp(inputs=(value.index,), channels=value.channels)
        known = gain if gain is not None else bias
        assert known is not None
        gain = torch.ones_like(known) if gain is None else gain
        bias = torch.zeros_like(known) if bias is None else bias
        self._give(node, affine, Scaled(gain, bias), value.layout)

    # -- shapes ----------------------------------------------------------------------------------

    def _reshape(self, node: Node) -> None:
        value, shape = self._taken(node), node.shape
        if value.is_pixel and math.prod(shape) == value.channels:
            places = [place for place, size in enumerate(shape) if size == value.channels]
            if 1 in places and len(shape) in (2, 3, 4):
                self._same(node, "flat" if len(shape) == 2 else "first")
                return
            if len(shape) == 4 and places == [3]:
                self._same(node, "last")
                return
        if value.layout == "first" and shape == (1, math.prod(value.shape)):
            # Linear layers of it are convolutions of the whole image.
            if all(each.op == "linear" for each in self._beyond_dropout(node)):
                self._same(node, shape=value.shape)
                return
        rows = len(shape) == 3 and shape[:2] == value.shape[:2]
        if value.layout != "first" or not rows:
            self._refuse(node, f"it makes {shape} of {value.shape}, which mixes places")
        self._same(node)

    def _beyond_dropout(self, node: Node) -> Iterator[Node]:
        """The nodes that take a node's value, whatever hands it on."""
        for user in self._graph.users(node):
            if is_identity(user):
                yield from self._beyond_dropout(user)
            else:
                yield user

    def _expand(self, node: Node) -> None:
        """One value a channel stays one: who takes it spreads it."""
        value = self._taken(node)
        if not value.is_pixel or len(node.shape) != len(value.shape):
            self._refuse(node, f"it makes {node.shape} of {value.shape}")
        self._same(node, shape=value.shape)

    def _permute(self, node: Node) -> None:
        layout, dims = self._taken(node).layout, tuple(each % 4 for each in node.args[1])
        found: Layout | None = None
        if layout == "first" and dims == (0, 2, 3, 1):
            found = "last"
        if layout == "last" and dims == (0, 3, 1, 2):
            found = "first"
        if found is None:
            self._refuse(node, f"it permutes by {dims}")
        self._same(node, found)

    def _mean(self, node: Node) -> None:
        value, dims = self._taken(node), node.argument(1, "dim")
        count = len(value.shape)
        places = {int(each) % count for each in dims} if isinstance(dims, tuple | list) else set()
        wanted = {1, 2} if value.layout == "last" else set(range(2, count))
        if count < 3 or places != wanted:
            self._refuse(node, "it is no mean over height and width")
        layout: Layout = "flat" if len(node.shape) == 2 else value.layout
        self._give(node, MeanOp(inputs=(value.index,)), layout=layout)

    def _adaptive(self, node: Node) -> None:
        if self._unpadded(node).shape == node.shape:
            self._pass_through(node)
            return
        value = self._taken(node)
        if value.layout != "first" or node.shape[-2:] != (1, 1):
            self._refuse(node, f"it pools {value.shape} to {node.shape}, not to one pixel")
        self._give(node, MeanOp(inputs=(value.index,)))

    def _max_pool(self, node: Node) -> None:
        if _pair(node.argument(4, "dilation", 1)) != (1, 1):
            self._refuse(node, "its window is dilated")
        self._pool(node, "max", False)

    def _mean_pool(self, node: Node) -> None:
        if node.argument(6, "divisor_override") is not None:
            self._refuse(node, "it divides by a number of its own")
        value, padding = self._unpadded(node), _pair(node.argument(3, "padding", 0))
        whole = _pair(node.args[1]) == value.shape[2:] and padding == (0, 0)
        if whole and value.layout == "first" and value.padding == NO_PADDING:
            self._give(node, MeanOp(inputs=(value.index,)))
            return
        self._pool(node, "mean", bool(node.argument(5, "count_include_pad", True)))

    def _pool(self, node: Node, kind: Literal["max", "mean"], includes: bool) -> None:
        """Adds a pool; zeros around what it takes are its own where that comes to the same.

        Args:
            node: The pool.
            kind: What it gives.
            includes: Whether its mean counts its own padding; zeros around an image it always does.
        """
        value, kernel = self._unpadded(node), _pair(node.args[1])
        stride = _pair(node.argument(2, "stride") or kernel)
        high, wide = _pair(node.argument(3, "padding", 0))
        own: Padding = (high, wide, high, wide)
        if value.layout != "first":
            self._refuse(node, "its channels do not come first")
        # With ceil_mode, the last windows reach beyond all padding, which no mean counts.
        below, right = (
            max(0, (given - 1) * step + edge - taken - 2 * pad)
            for given, step, edge, taken, pad in zip(
                node.shape[2:], stride, kernel, value.shape[2:], (high, wide), strict=True
            )
        )
        counts = includes and not (below or right)
        if includes and own != NO_PADDING and not counts:
            self._refuse(node, "its mean counts some padding only (ceil_mode)")
        padding = added(own, (0, 0, below, right))
        if value.padding != NO_PADDING:
            together = added(padding, value.padding)
            if kind == "max":
                positive = never_negative(self._graph, self._graph.taken(node))
                folds = positive and _is_within(together, kernel)
            else:
                counts = folds = counts or (own == NO_PADDING and not (below or right))
            value = value if folds else self._taken(node)
            padding = together if folds else padding
        if not counts and not _is_within(padding, kernel):
            self._refuse(node, "some of its windows see little of the image (ceil_mode)")
        op = PoolOp(
            inputs=(value.index,),
            kind=kind,
            kernel=kernel,
            stride=stride,
            padding=padding,
            count_padding=counts,
        )
        self._give(node, op)


def _is_within(padding: Padding, kernel: tuple[int, int]) -> bool:
    """Whether a padding is at most half of a kernel, so that every window sees the image."""
    return all(2 * pad <= edge for pad, edge in zip(padding, (*kernel, *kernel), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    given = value if isinstance(value, tuple | list) else (value,)
    first, second = (*given, *given) if len(given) == 1 else given
    return int(first), int(second)
