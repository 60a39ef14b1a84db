"""Residual blocks, found by structure: two ways from one value to a sum.

Everything that a residual network computes flows through a chain of values (`graph.cuts`). Between
two of them that are neighbours there is one step, or ways side by side that meet again. Where they
meet in a sum, and one of them is the identity or a projection, that is a residual block: whatever
its class is called.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from fracskip.errors import ConfigError
from fracskip.models.graph import Measured, cuts, data_nodes, measure, module_of, owner, trace

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Mish
)  # fmt: skip
ACTIVATION_CALLS = (
    F.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.leaky_relu, torch.relu, "relu", "relu_"
)  # fmt: skip
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# What a projection may consist of beside convolutions; an activation would make it a second branch.
IN_SHORTCUTS = (
    nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.AvgPool2d, nn.MaxPool2d, nn.Identity, nn.Dropout
)  # fmt: skip

RELU_CALLS = (F.relu, torch.relu, "relu", "relu_")
NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
NEVER_NEGATIVE_CALLS = (
    F.relu,
    F.relu6,
    F.sigmoid,
    F.hardsigmoid,
    torch.relu,
    torch.sigmoid,
    "relu",
    "sigmoid",
)
KEEP_SIGN = (nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
KEEP_SIGN_CALLS = (
    "mean",
    "permute",
    "flatten",
    "contiguous",
    torch.permute,
    torch.flatten,
    torch.mean,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.max_pool2d,
)

# What gives, in evaluation mode, what it takes.
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)
IDENTITY_NAMES = ("StochasticDepth", "DropPath")
IDENTITY_CALLS = ("contiguous", "clone", F.dropout, F.dropout2d)

FIRST = "the first block is always executed"

Chooser = Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Block:
    """One block: y = after(branch(x) + shortcut(x)), or y = branch(x).

    Attributes:
        name: Path of its module; of a sum in the network's own code, or a second one in a module,
            with the sum's name.
        entry: x.
        branch: Steps of the residual branch, in order, and its output at the end.
        shortcut: Steps of the shortcut, likewise; None where it is the identity.
        sum: Where they meet; None for a block without a shortcut.
        after: Steps from the sum to the output: an activation, or none.
        output: y.
    """

    name: str
    entry: fx.Node
    branch: tuple[fx.Node, ...]
    shortcut: tuple[fx.Node, ...] | None
    sum: fx.Node | None
    after: tuple[fx.Node, ...]
    output: fx.Node

    @property
    def can_be_skipped(self) -> bool:
        """Whether there is a shortcut that hands something on."""
        return self.sum is not None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All of its steps."""
        middle = () if self.sum is None else (self.sum,)
        return (*self.branch, *(self.shortcut or ()), *middle, *self.after)


@dataclass(frozen=True)
class Structure:
    """A network, its blocks and what lies around them.

    Attributes:
        graph: Of the whole network.
        nodes: From the images to the logits, in order.
        blocks: Those that a gate can decide for, in order of execution.
        measured: Shape and cost of every node, by name.
        refused: Blocks that stay as they are, by name: why.
    """

    graph: fx.Graph
    nodes: tuple[fx.Node, ...]
    blocks: tuple[Block, ...]
    measured: dict[str, Measured]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Logits a network gives."""
        return self.measured[self.nodes[-1].all_input_nodes[0].name].shape[-1]

    def macs(self, nodes: Iterable[fx.Node]) -> int:
        """Multiply-accumulates of some nodes."""
        return sum(self.measured[node.name].macs for node in nodes)

    def channels(self, block: Block) -> int:
        """Channels of what a block sees."""
        return self.measured[block.entry.name].shape[1]


def find_blocks(net: nn.Module, image: tuple[int, int, int], blocks: Chooser = None) -> Structure:
    """Finds a network's residual blocks.

    Args:
        net: In evaluation mode.
        image: Channels, height and width of an image that it takes.
        blocks: Names of the modules to take as blocks, or what says of a name and a module
            whether it is one; None finds them by structure, those of the same class that have no
            shortcut included. The first block found is left out: it gives the gates something to
            see. Those that a caller names are all taken.

    Raises:
        ConfigError: if there are none, one named is no block, or the network can't be traced.
    """
    graph = trace(net)
    nodes = data_nodes(graph)
    chain = cuts(nodes)
    measured = measure(net, graph, image)
    shape = measured[nodes[-1].all_input_nodes[0].name].shape
    if len(shape) != 2:
        raise ConfigError(
            f"{type(net).__name__} gives values of shape {shape} for one image, not logits (1, "
            "classes): give a network that classifies"
        )
    refused: dict[str, str] = {}
    if blocks is None:
        found = _by_structure(net, nodes, chain)
        if not found:
            raise ConfigError(
                f"{type(net).__name__} has no residual blocks: nothing in it is added to what it "
                "was computed from; name its blocks in blocks=[...], and they get the bitwidths"
            )
        refused[found[0].name] = FIRST
        found = found[1:]
    else:
        found = [_named(nodes, chain, name, net) for name in _chosen(net, blocks)]
    taken = []
    for block in sorted(found, key=lambda each: nodes.index(each.entry)):
        reason = _reason(net, block, measured, nodes)
        if reason and blocks is not None:
            raise ConfigError(f"block {block.name!r} can't be gated: {reason}; leave it out")
        if reason:
            refused[block.name] = reason
        else:
            taken.append(block)
    if not taken:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise ConfigError(f"no block of {type(net).__name__} can be gated ({why})")
    _check_shared(net, nodes, taken)
    return Structure(graph, tuple(nodes), tuple(taken), measured, refused)


def _by_structure(net: nn.Module, nodes: Sequence[fx.Node], chain: Sequence[int]) -> list[Block]:
    found: list[Block] = []
    for place, (before, at) in enumerate(itertools.pairwise(chain)):
        block = _residual(nodes, before, at, net)
        if block is not None:
            block = _with_activation(net, block, nodes, chain[place + 2 : place + 3])
            if any(each.name == block.name for each in found):
                block = replace(block, name=f"{block.name}:{nodes[at].name}")
            found.append(block)
    modules = dict(net.named_modules())
    names = {block.name for block in found}
    kinds = {type(modules[name]) for name in names if name in modules}
    for name, module in modules.items():
        inside = any(name.startswith(f"{known}.") for known in names)
        if type(module) in kinds and name not in names and not inside:
            plain = _without_shortcut(nodes, chain, name)
            if plain is not None:
                found.append(plain)
    return sorted(found, key=lambda block: nodes.index(block.entry))


def _residual(nodes: Sequence[fx.Node], before: int, at: int, net: nn.Module) -> Block | None:
    """The block between two neighbours of the chain, if what meets there is a residual sum."""
    entry, total = nodes[before], nodes[at]
    section = nodes[before + 1 : at]
    if not section or total.target not in SUMS or len(total.args) != 2 or total.kwargs:
        return None
    known = {entry, *section}
    ends = [each for each in total.args if isinstance(each, fx.Node) and each in known]
    if len(ends) != 2:
        return None
    ways = [_way(end, set(section)) for end in ends]
    if set(ways[0]) & set(ways[1]):
        return None
    # The shortcut is the identity, or the way with less in it.
    by_weight = sorted((0, 1), key=lambda side: (_weights(net, ways[side]), len(ways[side])))
    short, long = ways[by_weight[0]], ways[by_weight[1]]
    if not _weights(net, long) or not all(_may_be_shortcut(net, node) for node in short):
        return None
    if all(isinstance(module_of(net, node), nn.Identity) for node in short):
        short = []
    name = owner(total) or total.name
    return Block(name, entry, tuple(long), tuple(short) or None, total, (), total)


def _way(end: fx.Node, section: set[fx.Node]) -> list[fx.Node]:
    """What a value is computed from within a section, in order."""
    found: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node in section and node not in found:
            for needed in node.all_input_nodes:
                visit(needed)
            found[node] = None

    visit(end)
    return list(found)


def _weights(net: nn.Module, nodes: Iterable[fx.Node]) -> int:
    return sum(isinstance(module_of(net, node), WEIGHTED) for node in nodes)


def _may_be_shortcut(net: nn.Module, node: fx.Node) -> bool:
    module = module_of(net, node)
    if module is None:
        return node.target in (F.avg_pool2d, F.max_pool2d, F.pad)
    plain = not isinstance(getattr(module, "act", None), ACTIVATIONS)
    return isinstance(module, (*WEIGHTED, *IN_SHORTCUTS)) and plain


def is_activation(net: nn.Module, node: fx.Node) -> bool:
    """Whether a step is an activation and nothing else."""
    module = module_of(net, node)
    return node.target in ACTIVATION_CALLS if module is None else isinstance(module, ACTIVATIONS)


def is_relu(net: nn.Module, node: fx.Node) -> bool:
    """Whether a step is a ReLU, which leaves alone what has no negative elements."""
    module = module_of(net, node)
    return node.target in RELU_CALLS if module is None else type(module) is nn.ReLU


def never_negative(net: nn.Module, node: fx.Node) -> bool:
    """Whether a value is known to have no negative elements."""
    module = module_of(net, node)
    if isinstance(module, nn.BatchNorm2d):
        module = getattr(module, "act", None)
    elif isinstance(module, KEEP_SIGN) or node.target in KEEP_SIGN_CALLS:
        return never_negative(net, node.all_input_nodes[0])
    if node.target in (operator.mul, torch.mul, *SUMS):
        inputs = node.all_input_nodes
        return len(inputs) == 2 and all(never_negative(net, each) for each in inputs)
    return isinstance(module, NEVER_NEGATIVE) or node.target in NEVER_NEGATIVE_CALLS


def hands_on(net: nn.Module, node: fx.Node) -> bool:
    """Whether a step gives what it takes, in evaluation mode."""
    module = module_of(net, node)
    if module is None:
        return node.target in IDENTITY_CALLS
    return isinstance(module, IDENTITIES) or type(module).__name__ in IDENTITY_NAMES


def _with_activation(
    net: nn.Module, block: Block, nodes: Sequence[fx.Node], following: Sequence[int]
) -> Block:
    """The block with what its module does to the sum at once."""
    for at in following:
        node = nodes[at]
        after_sum = node.all_input_nodes == [block.sum] and owner(node) == block.name
        if after_sum and is_activation(net, node):
            return replace(block, after=(node,), output=node)
    return block


def _without_shortcut(nodes: Sequence[fx.Node], chain: Sequence[int], name: str) -> Block | None:
    """A module's nodes as a block, if they lie between two values of the chain."""
    places = [
        index
        for index, node in enumerate(nodes)
        if owner(node) == name or owner(node).startswith(f"{name}.")
    ]
    if not places or places != list(range(places[0], places[-1] + 1)) or not places[0]:
        return None
    if places[0] - 1 not in chain or places[-1] not in chain:
        return None
    inside = tuple(nodes[index] for index in places)
    return Block(name, nodes[places[0] - 1], inside, None, None, (), inside[-1])


def _chosen(net: nn.Module, blocks: Chooser) -> list[str]:
    modules = dict(net.named_modules())
    if callable(blocks):
        names = [name for name, module in modules.items() if blocks(name, module)]
    elif isinstance(blocks, str):
        names = [blocks]
    else:
        names = list(blocks or ())
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        what = f"{', '.join(map(repr, unknown))} are no modules" if unknown else "no block is named"
        raise ConfigError(
            f"{what} of {type(net).__name__}: give paths as in named_modules(), or leave blocks out"
        )
    return names


def _named(nodes: Sequence[fx.Node], chain: Sequence[int], name: str, net: nn.Module) -> Block:
    """The block that a caller named."""
    for block in _by_structure(net, nodes, chain):
        if block.name == name:
            return block
    plain = _without_shortcut(nodes, chain, name)
    if plain is None:
        raise ConfigError(
            f"{name!r} can't be a block: one value must flow into it and one out of it, with "
            "nothing beside it"
        )
    return plain


def quantisable(module: nn.Module | None) -> bool:
    """Whether a layer computes what its kind does, so that options can execute it."""
    if isinstance(module, nn.Conv2d):
        return type(module).forward is nn.Conv2d.forward and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _reason(
    net: nn.Module, block: Block, measured: dict[str, Measured], nodes: Sequence[fx.Node]
) -> str:
    """Why a gate can't decide for a block; '' if it can."""
    if len(measured[block.entry.name].shape) != 4:
        return "what it sees is no (images, channels, height, width)"
    if block.entry is nodes[0]:
        return "it sees the images themselves"
    layers = [(node, module_of(net, node)) for node in block.branch]
    total = sum(measured[node.name].macs for node in block.branch)
    if not total:
        return "it has no convolution and no linear layer"
    for node, module in layers:
        count = measured[node.name].macs
        if count > KEPT_SHARE * total and not quantisable(module):
            kind = type(module).__name__ if module is not None else str(node.target)
            return f"{node.target} ({kind}) is no plain convolution or linear layer"
    return ""


# A layer that no option changes may stay in a branch if it is next to nothing of it.
KEPT_SHARE = 0.01


def _check_shared(net: nn.Module, nodes: Sequence[fx.Node], blocks: Sequence[Block]) -> None:
    """Refuses layers with weights that are executed twice: an option can't be told from where."""
    inside = {node for block in blocks for node in block.nodes}
    calls: dict[int, list[fx.Node]] = {}
    for node in nodes:
        module = module_of(net, node)
        if module is not None and next(module.parameters(), None) is not None:
            calls.setdefault(id(module), []).append(node)
    for where in calls.values():
        if len(where) > 1 and inside.intersection(where):
            names = ", ".join(sorted({str(node.target) for node in where}))
            raise ConfigError(
                f"{names} is executed {len(where)} times in one pass: blocks can't share layers "
                "with weights; give each its own, or leave the block out with blocks="
            )
