"""Residual blocks, found by structure: two ways from one value to a sum.

Everything that a residual network computes flows through a chain of values (`Graph.cuts`). Between
two of them that are neighbours there is one operation, or ways side by side that meet again. Where
they meet in a sum, and one of them is the identity or a projection, that is a residual block:
whatever its class is called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from fracskip.errors import ConfigError
from fracskip.models.graph import Graph, Node, ways
from fracskip.models.padding import PADS, fill_of
from fracskip.models.tracing import trace

ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "clamp", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu",
    "leaky_relu", "elu", "prelu", "mish", "softplus", "tanh", "selu", "celu",
)  # fmt: skip
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "linear")
# What a projection may consist of beside convolutions; an activation would make it a second branch.
IN_SHORTCUTS = (
    "batch_norm", "layer_norm", "group_norm", "avg_pool2d", "max_pool2d", "dropout", "slice", *PADS,
)  # fmt: skip
KEEP_SIGN = (
    "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean",
    "permute", "transpose", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as",
    "slice", "amax",
)  # fmt: skip

FIRST = "the first block is always executed"

# A layer that no option changes may stay in a branch if it is next to nothing of it.
KEPT_SHARE = 0.01

Chooser = Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True, eq=False)
class Block:
    """One block: y = after(branch(x) + shortcut(x)), or y = branch(x).

    Attributes:
        name: Path of its module; of a sum in the network's own code, or a second one in a module,
            with the sum's name.
        entry: x.
        branch: Nodes of the residual branch, in order, and its output at the end.
        shortcut: Nodes of the shortcut, likewise; None where it is the identity.
        sum: Where they meet; None for a block without a shortcut.
        after: Nodes from the sum to the output: an activation, or none.
        output: y.
    """

    name: str
    entry: Node
    branch: tuple[Node, ...]
    shortcut: tuple[Node, ...] | None
    sum: Node | None
    after: tuple[Node, ...]
    output: Node

    @property
    def can_be_skipped(self) -> bool:
        """Whether there is a shortcut that hands something on."""
        return self.sum is not None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of its nodes."""
        middle = () if self.sum is None else (self.sum,)
        return (*self.branch, *(self.shortcut or ()), *middle, *self.after)


@dataclass(frozen=True, eq=False)
class Structure:
    """A network, its blocks and what lies around them.

    Attributes:
        graph: Of the whole network.
        blocks: Those that a gate can decide for, in order of execution.
        refused: Blocks that stay as they are, by name: why.
        first: The block in front of these that no gate decides for, if there is one.
    """

    graph: Graph
    blocks: tuple[Block, ...]
    refused: dict[str, str] = field(default_factory=dict)
    first: Block | None = None

    @property
    def classes(self) -> int:
        """Logits a network gives."""
        return self.graph[self.graph.output].shape[-1]

    def channels(self, block: Block) -> int:
        """Channels of what a block sees."""
        return block.entry.shape[1]

    def require_blocks(self, kind: str) -> None:
        """Refuses a network in which there is nothing for gates to decide.

        Args:
            kind: Of the network, for the message.

        Raises:
            ConfigError: saying why.
        """
        if self.blocks:
            return
        if not self.refused:
            raise ConfigError(
                f"{kind} has no residual blocks: nothing in it is added to what it was computed "
                "from; name its blocks in blocks=[...], and they get the bitwidths, or quantise it "
                "as a whole with fracskip.quantize"
            )
        why = "; ".join(f"{name}: {reason}" for name, reason in list(self.refused.items())[:3])
        raise ConfigError(f"no block of {kind} can be gated ({why})")


def find_blocks(net: nn.Module, image: tuple[int, int, int], blocks: Chooser = None) -> Structure:
    """Finds a network's residual blocks. There may be none: see `Structure.require_blocks`.

    Args:
        net: In evaluation mode; see `tracing.trace` for what is replaced in it.
        image: Channels, height and width of an image that it takes.
        blocks: Names of the modules to take as blocks, or what says of a name and a module
            whether it is one; None finds them by structure, those of the same class that have no
            shortcut included. The first block found is left out: it gives the gates something to
            see. Those that a caller names are all taken.

    Raises:
        ConfigError: if one named is no block, blocks share layers, or the network can't be traced.
    """
    names = None if blocks is None else _chosen(net, blocks)
    graph = trace(net, image)
    refused: dict[str, str] = {}
    first: Block | None = None
    if names is None:
        found = _by_structure(net, graph)
        first = found.pop(0) if found else None
        if first is not None:
            refused[first.name] = FIRST
            if _reason(graph, first) or _shared(graph, [first]):
                first = None  # no part of its own
    else:
        found = [_named(graph, name, net) for name in names]
    taken = []
    for block in sorted(found, key=lambda each: each.entry.index):
        reason = _reason(graph, block)
        if reason and names is not None:
            raise ConfigError(f"block {block.name!r} can't be gated: {reason}; leave it out")
        if reason:
            refused[block.name] = reason
        else:
            taken.append(block)
    if (shared := _shared(graph, taken)) is not None:
        path, times = shared
        raise ConfigError(
            f"{path} is executed {times} times in one pass: blocks can't share layers with "
            "weights; give each its own, or leave the block out with blocks="
        )
    return Structure(graph, tuple(taken), refused, first)


def _by_structure(net: nn.Module, graph: Graph) -> list[Block]:
    found: list[Block] = []
    for place, (before, at) in enumerate(itertools.pairwise(graph.cuts)):
        block = _residual(graph, before, at)
        if block is not None:
            block = _with_activation(graph, block, graph.cuts[place + 2 : place + 3])
            if any(each.name == block.name for each in found):
                block = replace(block, name=f"{block.name}:{graph.data[at].name}")
            found.append(block)
    modules = dict(net.named_modules())
    names = {block.name for block in found}
    kinds = {type(modules[name]) for name in names if name in modules}
    for name, module in modules.items():
        inside = any(name.startswith(f"{known}.") for known in names)
        if type(module) in kinds and name not in names and not inside:
            plain = _without_shortcut(graph, name)
            if plain is not None:
                found.append(plain)
    return sorted(found, key=lambda block: block.entry.index)


def _residual(graph: Graph, before: int, at: int) -> Block | None:
    """The block between two neighbours of the chain, if what meets there is a residual sum."""
    entry, total = graph.data[before], graph.data[at]
    section = graph.data[before + 1 : at]
    ends = [graph[index] for index in total.inputs]
    if not section or total.op != "add" or len(ends) != 2 or total.kwargs:
        return None
    known = {entry.index, *(node.index for node in section)}
    if any(end.index not in known for end in ends):
        return None
    sides = [ways(graph, end, section) for end in ends]
    if set(sides[0]) & set(sides[1]):
        return None
    # The shortcut is the identity, or the way with less in it.
    short, long = sorted(sides, key=lambda side: (_convolutions(side), len(side)))
    if not _convolutions(long):
        return None
    if not all(_may_be_shortcut(graph, node) for node in short):
        return None
    name = _common((total, *long)) or total.name
    return Block(name, entry, long, short or None, total, (), total)


def _may_be_shortcut(graph: Graph, node: Node) -> bool:
    if node.op in ("mul", "div"):  # by a constant
        return sum(graph[index] in graph.data for index in node.inputs) == 1
    return node.op in (*CONVOLUTIONS, *IN_SHORTCUTS)


def _common(nodes: Iterable[Node]) -> str:
    """The innermost module that a sum's code and the layers that it adds belong to."""
    total, *others = nodes
    paths = [total.owner, *(node.path for node in others if node.is_layer)]
    parts = [path.split(".") for path in paths]
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False))
    return ".".join(each[0] for each in same)


def _convolutions(nodes: Iterable[Node]) -> int:
    return sum(node.op in CONVOLUTIONS for node in nodes)


def is_relu(node: Node) -> bool:
    """Whether a node is a ReLU, which leaves alone what has no negative elements."""
    return node.op == "relu" or (node.op in ("clamp", "clamp_min") and bounds(node) == (0.0, None))


def bounds(node: Node) -> tuple[float | None, float | None]:
    """What a clamp's values lie between; None where it has no such bound, or one of each value."""
    first, last = {"hardtanh": (-1.0, 1.0)}.get(node.op, (None, None))
    if node.op == "relu6":
        return 0.0, 6.0
    low = node.argument(1, "min_val" if node.op == "hardtanh" else "min", first)
    high = node.argument(2, "max_val" if node.op == "hardtanh" else "max", last)
    if node.op == "clamp_max":
        low, high = None, low
    low, high = (float(each) if isinstance(each, int | float) else None for each in (low, high))
    return low, high


def never_negative(graph: Graph, node: Node) -> bool:
    """Whether a value is known to have no negative elements."""
    pads = node.op in PADS and (fill_of(node) or 0) >= 0
    if (node.op in KEEP_SIGN or pads) and node.inputs:
        return never_negative(graph, graph.taken(node))
    if node.op in ("add", "mul"):
        inputs = [graph[index] for index in node.inputs]
        computed = len(node.args) == 2 and not node.kwargs and len(inputs) == 2
        return computed and all(never_negative(graph, each) for each in inputs)
    if node.op in ("hardtanh", "clamp", "clamp_min"):
        low, _ = bounds(node)
        return low is not None and low >= 0
    return node.op in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "abs", "exp")


def is_identity(node: Node) -> bool:
    """Whether a node gives what it takes, in evaluation mode."""
    return node.op == "dropout"


def _with_activation(graph: Graph, block: Block, following: Sequence[int]) -> Block:
    """The block with what its module does to the sum at once."""
    for at in following:
        node = graph.data[at]
        after_sum = block.sum is not None and node.inputs == (block.sum.index,)
        inside = block.sum is not None and node.owner == block.sum.owner
        if after_sum and inside and node.op in ACTIVATIONS:
            return replace(block, after=(node,), output=node)
    return block


def _without_shortcut(graph: Graph, name: str) -> Block | None:
    """A module's nodes as a block, if they lie between two values of the chain."""
    places = [place for place, node in enumerate(graph.data) if within(node, name)]
    if not places or places != list(range(places[0], places[-1] + 1)) or not places[0]:
        return None
    if places[0] - 1 not in graph.cuts or places[-1] not in graph.cuts:
        return None
    inside = graph.data[places[0] : places[-1] + 1]
    return Block(name, graph.data[places[0] - 1], inside, None, None, (), inside[-1])


def within(node: Node, name: str) -> bool:
    """Whether a node belongs to a module or to a part of it."""
    return any(
        path == name or path.startswith(f"{name}.") for path in (node.owner, node.path) if path
    )


def _chosen(net: nn.Module, blocks: Chooser) -> list[str]:
    modules = dict(net.named_modules())
    if callable(blocks):
        names = [name for name, module in modules.items() if blocks(name, module)]
    elif isinstance(blocks, str):
        names = [blocks]
    else:
        names = list(blocks or ())
    if not names:
        raise ConfigError(
            f"no block is named: give paths as in named_modules() of {type(net).__name__}, or "
            "leave blocks out"
        )
    return names


def _named(graph: Graph, name: str, net: nn.Module) -> Block:
    """The block that a caller named."""
    for block in _by_structure(net, graph):
        if block.name == name:
            return block
    if name not in dict(net.named_modules()):
        raise ConfigError(
            f"{name!r} is no module of {type(net).__name__}: give paths as in named_modules(), or "
            "leave blocks out"
        )
    plain = _without_shortcut(graph, name)
    if plain is None:
        raise ConfigError(
            f"{name!r} can't be a block: one value must flow into it and one out of it, with "
            "nothing beside it"
        )
    return plain


def quantisable(node: Node) -> bool:
    """Whether a node calls a layer that options can execute."""
    return node.is_layer and node.op in ("conv2d", "linear")


def _reason(graph: Graph, block: Block) -> str:
    """Why a gate can't decide for a block; '' if it can."""
    if len(block.entry.shape) != 4:
        return "what it sees is no (images, channels, height, width)"
    if block.entry is graph[0]:
        return "it sees the images themselves"
    total = graph.macs(block.branch)
    if not total:
        return "it has no convolution and no linear layer"
    for node in block.branch:
        if node.macs > KEPT_SHARE * total and not quantisable(node):
            return f"{node} is no plain convolution or linear layer"
    return ""


def _shared(graph: Graph, blocks: Sequence[Block]) -> tuple[str, int] | None:
    """A layer of blocks that is executed more than once, and how often: its options would mix."""
    inside = {node.index for block in blocks for node in block.nodes}
    calls: dict[str, list[int]] = {}
    for node in graph.data:
        if node.is_layer:
            calls.setdefault(node.path, []).append(node.index)
    for path, where in calls.items():
        if len(where) > 1 and inside.intersection(where):
            return path, len(where)
    return None
