"""From steps of a traced network to operations of a bundle.

Every step is known by its layer's class or by the function that it calls; what is not known, or
means something else here, is refused by name. Channels come last in a bundle, so permutations
disappear; BatchNorms and activations go into the convolution before them where nothing else sees
what it gives.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fracskip.deployment.lowered import Layout, Lowered, Scaled, Source, Value, Weighted
from fracskip.errors import ConfigError
from fracskip.models.graph import Measured, module_of
from fracskip.models.structure import SUMS, hands_on
from fracskip.runtime.operations import (
    Act,
    ActOp,
    AffineOp,
    BinaryOp,
    ConvOp,
    MeanOp,
    NormOp,
    Op,
    PoolOp,
)

PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
FLATTENS = (torch.flatten, "flatten", "reshape", "view", "squeeze")
PERMUTES = (torch.permute, "permute")
ACTS: dict[Any, Act] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardsigmoid: "hardsigmoid", nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.GELU: "gelu",
    F.relu: "relu", F.relu6: "relu6", F.hardsigmoid: "hardsigmoid", F.hardswish: "hardswish",
    F.sigmoid: "sigmoid", F.silu: "silu", F.gelu: "gelu",
    torch.relu: "relu", torch.sigmoid: "sigmoid", "relu": "relu", "relu_": "relu",
    "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
}  # fmt: skip
# timm's own, by name: it may not be installed.
TIMM_ACTS: dict[str, Act] = {
    "Swish": "silu", "Sigmoid": "sigmoid", "HardSwish": "hardswish", "HardSigmoid": "hardsigmoid",
    "GELU": "gelu",
}  # fmt: skip
PLAIN_LINEAR = ("timm.layers.linear.Linear",)  # with casts for scripts
CHANNEL_NORMS = ("LayerNorm2d",)  # torchvision's and timm's, over channels that come first


def lower(
    net: nn.Module,
    nodes: Sequence[fx.Node],
    entry: fx.Node,
    output: fx.Node,
    taken: Value,
    measured: dict[str, Measured],
) -> Lowered:
    """Lowers consecutive steps.

    Args:
        net: The network.
        nodes: The steps, in order.
        entry: The node whose value the program takes.
        output: The node whose value it gives.
        taken: That value.
        measured: Shapes of all nodes, by name.

    Raises:
        ConfigError: naming the step that has no place in a bundle.
    """
    lowering = _Lowering(net, entry, taken, measured)
    for node in nodes:
        lowering.add(node)
    return lowering.finished(output)


class _Lowering:
    def __init__(
        self, net: nn.Module, entry: fx.Node, taken: Value, measured: dict[str, Measured]
    ) -> None:
        self._net, self._measured = net, measured
        self._values: dict[fx.Node, Value] = {entry: Value(0, taken.layout, taken.shape)}
        self._ops: list[Op] = []
        self._sources: list[Source] = []

    def finished(self, output: fx.Node) -> Lowered:
        value = self._values[output]
        if value.index != len(self._ops):
            self._refuse(output, "its value is not the last one")
        return Lowered(tuple(self._ops), tuple(self._sources), value)

    def _refuse(self, node: fx.Node, why: str) -> NoReturn:
        module = module_of(self._net, node)
        kind = getattr(node.target, "__name__", str(node.target))
        what = f"{node.target} ({type(module).__name__})" if module is not None else kind
        raise ConfigError(
            f"{what} has no place in a bundle: {why}; execute the checkpoint itself, with torch "
            "(fracskip eval CHECKPOINT)"
        )

    # -- values ----------------------------------------------------------------------------------

    def _give(self, node: fx.Node, op: Op, source: Source = None, layout: Layout = "first") -> None:
        self._ops.append(op)
        self._sources.append(source)
        self._values[node] = Value(len(self._ops), layout, self._measured[node.name].shape)

    def _same(self, node: fx.Node, layout: Layout | None = None) -> None:
        """The node gives what it takes, as a bundle sees it."""
        value = self._taken(node)
        shape = self._measured[node.name].shape
        self._values[node] = Value(value.index, layout or value.layout, shape)

    def _taken(self, node: fx.Node) -> Value:
        inputs = [each for each in node.all_input_nodes if each in self._values]
        if not inputs:
            self._refuse(node, "what it takes is not computed in this part")
        return self._values[inputs[0]]

    def _constant(self, node: Any) -> Tensor | None:
        """The value of what does not depend on the images; None if that is no tensor."""
        if not isinstance(node, fx.Node):
            is_number = isinstance(node, int | float) and not isinstance(node, bool)
            return torch.tensor(float(node)) if is_number else None
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            found = getattr(self._net.get_submodule(path), name)
            return found.detach() if isinstance(found, Tensor) else None
        if node.op == "call_method" and all(
            each not in self._values for each in node.all_input_nodes
        ):
            held = self._constant(node.args[0])
            if held is not None:
                found = getattr(held, str(node.target))(*node.args[1:], **node.kwargs)
                return found if isinstance(found, Tensor) else None
        return None

    def _producer(self, node: fx.Node) -> int | None:
        """The operation that gives what a node takes, if nothing else sees that."""
        before = node.all_input_nodes[0]
        alone = list(before.users) == [node] and self._values[before].index > 0
        return self._values[before].index - 1 if alone else None

    # -- steps -----------------------------------------------------------------------------------

    def add(self, node: fx.Node) -> None:
        """Lowers one step."""
        module = module_of(self._net, node)
        if hands_on(self._net, node):
            self._same(node)
        elif module is not None:
            self._module(node, module)
        elif node.target in ACTS:
            approximate = node.kwargs.get("approximate", "none")
            if approximate != "none":
                self._refuse(node, f"its approximation {approximate!r} is none of a bundle's")
            self._activate(node, ACTS[node.target])
        elif node.target in SUMS:
            self._binary(node, "add")
        elif node.target in PRODUCTS:
            self._binary(node, "mul")
        elif node.target in FLATTENS:
            self._flatten(node)
        elif node.target in PERMUTES:
            dims = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            self._permute(node, tuple(dims))  # type: ignore[arg-type]
        elif node.target in (torch.mean, "mean"):
            self._mean(node)
        elif node.target is F.adaptive_avg_pool2d:
            self._adaptive(node)
        elif node.target in (F.max_pool2d, F.avg_pool2d):
            self._pool_call(node)
        else:
            self._refuse(node, "no operation of a bundle does what it does")

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        kind = type(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._weighted(node, module)
        elif isinstance(module, nn.BatchNorm2d):
            self._batch_norm(node, module)
        elif isinstance(module, nn.LayerNorm):
            self._layer_norm(node, module)
        elif kind in ACTS:
            if getattr(module, "approximate", "none") != "none":
                self._refuse(
                    node, f"its approximation {module.approximate!r} is none of a bundle's"
                )
            self._activate(node, ACTS[kind])
        elif kind.__module__.startswith("timm.") and kind.__name__ in TIMM_ACTS:
            self._activate(node, TIMM_ACTS[kind.__name__])
        elif kind.__name__ == "Permute":
            self._permute(node, tuple(module.dims))  # type: ignore[arg-type]
        elif isinstance(module, nn.Flatten):
            self._flatten(node)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self._adaptive(node)
        elif isinstance(module, nn.MaxPool2d):
            if _pair(module.dilation) != (1, 1):
                self._refuse(node, "its window is dilated")
            self._pool(node, "max", module, False)
        elif isinstance(module, nn.AvgPool2d):
            self._pool(node, "mean", module, module.count_include_pad)
        else:
            self._refuse(node, "no operation of a bundle does what it does")

    def _weighted(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        same = type(layer).forward is kind.forward or _path(type(layer)) in PLAIN_LINEAR
        if not same:
            self._refuse(node, f"it computes more than a {kind.__name__} does")
        value = self._taken(node)
        if isinstance(layer, nn.Linear):
            if value.layout == "first":
                self._refuse(node, "it mixes other values than channels")
            one = (1, 1)
            op = ConvOp(
                inputs=(value.index,), channels=(layer.in_features, layer.out_features),
                kernel=one, stride=one, padding=(0, 0), dilation=one, groups=1, act="none",
            )  # fmt: skip
        else:
            if value.layout != "first":
                self._refuse(node, "its channels do not come first")
            op = ConvOp(
                inputs=(value.index,),
                channels=(layer.in_channels, layer.out_channels),
                kernel=_pair(layer.kernel_size),
                stride=_pair(layer.stride),
                padding=self._padding(node, layer),
                dilation=_pair(layer.dilation),
                groups=layer.groups,
                act="none",
            )
        self._give(node, op, Weighted(str(node.target), layer), value.layout)

    def _padding(self, node: fx.Node, layer: nn.Conv2d) -> tuple[int, int]:
        if layer.padding_mode != "zeros":
            self._refuse(node, f"it pads by {layer.padding_mode!r}, not by zeros")
        if layer.padding == "valid":
            return 0, 0
        if layer.padding == "same":
            reach = [(k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
            if any(each % 2 for each in reach):
                self._refuse(node, "it pads one side more than the other")
            return reach[0] // 2, reach[1] // 2
        assert not isinstance(layer.padding, str)
        return _pair(layer.padding)

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> None:
        if not (norm.affine and norm.track_running_stats):
            self._refuse(node, "it has no terms or no statistics of its own")
        value, before = self._taken(node), self._producer(node)
        source = None if before is None else self._sources[before]
        folds = before is not None and isinstance(source, Weighted) and source.norm is None
        if folds and self._ops[before].act == "none":  # type: ignore[index, union-attr]
            assert isinstance(source, Weighted)
            assert before is not None
            self._sources[before] = Weighted(source.path, source.layer, norm)
            self._same(node)
        else:
            op = AffineOp(inputs=(value.index,), channels=value.channels)
            self._give(node, op, Scaled(norm))
        act = getattr(norm, "act", None)  # timm's norms bring theirs along
        if act is None or isinstance(act, nn.Identity):
            return
        name = ACTS.get(type(act)) or TIMM_ACTS.get(type(act).__name__)
        if name is None:
            self._refuse(node, f"its activation {type(act).__name__} is none of a bundle's")
        producer = self._ops[self._values[node].index - 1]
        if folds and isinstance(producer, ConvOp) and producer.act == "none":
            self._ops[-1 if before is None else before] = producer.model_copy(update={"act": name})
        else:
            self._give(node, ActOp(inputs=(self._values[node].index,), act=name))

    def _layer_norm(self, node: fx.Node, norm: nn.LayerNorm) -> None:
        value = self._taken(node)
        over_channels = value.layout != "first" or type(norm).__name__ in CHANNEL_NORMS
        if not over_channels or norm.normalized_shape != (value.channels,):
            self._refuse(node, "it normalises over more than channels")
        op = NormOp(inputs=(value.index,), channels=value.channels, eps=norm.eps)
        self._give(node, op, Scaled(norm), value.layout)

    def _activate(self, node: fx.Node, act: Act) -> None:
        value, before = self._taken(node), self._producer(node)
        if before is not None:
            producer = self._ops[before]
            if isinstance(producer, ConvOp) and producer.act == "none":
                self._ops[before] = producer.model_copy(update={"act": act})
                self._same(node)
                return
        self._give(node, ActOp(inputs=(value.index,), act=act), layout=value.layout)

    def _binary(self, node: fx.Node, op: Literal["add", "mul"]) -> None:
        if node.kwargs or len(node.args) != 2:
            self._refuse(node, "it takes more than two values")
        first, second = (
            self._values.get(each) if isinstance(each, fx.Node) else None for each in node.args
        )
        if first is None or second is None:
            self._with_constant(node, op, first or second, node.args[first is not None])
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

    def _with_constant(self, node: fx.Node, op: str, value: Value | None, given: Any) -> None:
        other = self._constant(given)
        if value is None or other is None:
            self._refuse(node, "one of its values is neither computed nor a constant")
        place = 0 if value.layout == "last" else {"first": 2, "flat": 0}[value.layout]
        wide = other.reshape(other.shape if other.dim() > place else (1,) * (place + 1))
        per_channel = wide.numel() == wide.shape[-1 - place]
        if not per_channel or wide.numel() not in (1, value.channels):
            self._refuse(node, f"its constant of shape {tuple(other.shape)} is not one a channel")
        terms = wide.reshape(-1).double().expand(value.channels)
        source = Scaled(gain=terms) if op == "mul" else Scaled(bias=terms)
        affine = AffineOp(inputs=(value.index,), channels=value.channels)
        self._give(node, affine, source, value.layout)

    def _flatten(self, node: fx.Node) -> None:
        value, shape = self._taken(node), self._measured[node.name].shape
        if not value.is_pixel or shape != (1, value.channels):
            self._refuse(node, f"it makes {shape} of {value.shape}, which mixes places")
        self._same(node, "flat")

    def _permute(self, node: fx.Node, dims: tuple[int, ...]) -> None:
        layout = self._taken(node).layout
        found: Layout | None = None
        if layout == "first" and dims == (0, 2, 3, 1):
            found = "last"
        if layout == "last" and dims == (0, 3, 1, 2):
            found = "first"
        if found is None:
            self._refuse(node, f"it permutes by {dims}")
        self._same(node, found)

    def _mean(self, node: fx.Node) -> None:
        value, shape = self._taken(node), self._measured[node.name].shape
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        places = {int(each) % 4 for each in dims} if isinstance(dims, tuple | list) else set()
        wanted = {1, 2} if value.layout == "last" else {2, 3}
        if len(value.shape) != 4 or places != wanted:
            self._refuse(node, "it is no mean over height and width")
        layout: Layout = "flat" if len(shape) == 2 else value.layout
        self._give(node, MeanOp(inputs=(value.index,)), layout=layout)

    def _adaptive(self, node: fx.Node) -> None:
        value, shape = self._taken(node), self._measured[node.name].shape
        if value.layout != "first" or shape[-2:] != (1, 1):
            self._refuse(node, f"it pools {value.shape} to {shape}, not to one pixel")
        self._give(node, MeanOp(inputs=(value.index,)))

    def _pool_call(self, node: fx.Node) -> None:
        names = ("input", "kernel_size", "stride", "padding")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if len(node.args) > len(names):
            self._refuse(node, "it is called with more than a window")
        kind: Literal["max", "mean"] = "max" if node.target is F.max_pool2d else "mean"
        layer: Any = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
        known = {key: given[key] for key in names[1:] if key in given and given[key] != []}
        surplus = given.keys() - {*names, "ceil_mode", "count_include_pad"}
        if any(given[key] not in (None, 1, False) for key in surplus):
            self._refuse(node, "it does more than a plain pool")
        counts = kind == "mean" and bool(given.get("count_include_pad", True))
        self._pool(node, kind, layer(**known), counts)

    def _pool(
        self,
        node: fx.Node,
        kind: Literal["max", "mean"],
        window: nn.MaxPool2d | nn.AvgPool2d,
        counts: bool,
    ) -> None:
        if getattr(window, "divisor_override", None):
            self._refuse(node, "it divides by a number of its own")
        value = self._taken(node)
        op = PoolOp(
            inputs=(value.index,),
            kind=kind,
            kernel=_pair(window.kernel_size),
            stride=_pair(window.stride),
            padding=_pair(window.padding),
            count_padding=counts,
        )
        shape = self._measured[node.name].shape
        if value.layout != "first" or op.out_size(value.shape[2:]) != shape[2:]:  # type: ignore[arg-type]
            self._refuse(node, "it has windows that the image does not fill (ceil_mode)")
        self._give(node, op)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)
