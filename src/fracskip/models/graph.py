"""A network as a flat list of operations: what its own code computes, without its control flow.

`models.tracing` makes one of a module, `models.structure` finds residual blocks in it, and
`models.steps` executes parts of it. Nodes name each other by number, so that a graph of any depth
can be copied and pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# Operations that call a layer of the network, which options may replace.
LAYERS = ("conv2d", "linear", "batch_norm")


@dataclass(frozen=True)
class Ref:
    """Stands for the value of a node, by its index."""

    node: int


@dataclass(frozen=True)
class Batch:
    """Stands for a multiple of the number of images."""

    times: int


@dataclass(frozen=True)
class Device:
    """Stands for the device of the images."""


def mapped(template: Any, function: Callable[[Any], Any]) -> Any:
    """Arguments with every `Ref`, `Batch` and `Device` replaced by what a function says."""
    if isinstance(template, Ref | Batch | Device):
        return function(template)
    if isinstance(template, tuple | list):
        return type(template)(mapped(each, function) for each in template)
    if isinstance(template, dict):
        return {key: mapped(each, function) for key, each in template.items()}
    return template


def references(template: Any) -> tuple[int, ...]:
    """The nodes that arguments stand for, each once, in order."""
    found: dict[int, None] = {}

    def note(each: Any) -> Any:
        if isinstance(each, Ref):
            found[each.node] = None
        return each

    mapped(template, note)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        index: Its place in the graph.
        name: Unlike all others': what it computes and a number, such as 'add_1'.
        op: 'images'; 'tensor', a parameter or buffer; a layer's kind (`LAYERS`); 'dropout', which
            does something in training alone; or ATen's name for it, such as 'relu'.
        owner: Path of the module whose code it belongs to, layers left out; '' for the network's
            own.
        where: Path of the innermost module that it belongs to.
        args: Its arguments; `Ref` stands for another node's value.
        kwargs: Likewise, by name.
        shape: Of its value for one image; () where that is no tensor.
        macs: Multiply-accumulates for one image, as `torch.utils.flop_counter` counts them.
        path: Of the layer or tensor, where it is one.
        target: What is called, where it is neither: `torch.ops`' name, such as 'aten.relu.default'.
    """

    index: int
    name: str
    op: str
    owner: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    macs: int = 0
    path: str = ""
    target: str = ""
    where: str = ""

    @functools.cached_property
    def inputs(self) -> tuple[int, ...]:
        """The nodes whose values it takes, each once."""
        return references((self.args, self.kwargs))

    @property
    def is_layer(self) -> bool:
        """Whether it calls a layer of the network."""
        return self.op in LAYERS and bool(self.path)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __str__(self) -> str:
        return f"{self.where} ({self.op})" if self.where else self.name


@dataclass(frozen=True, eq=False)
class Graph:
    """A network's operations in order of execution.

    Attributes:
        nodes: All of them, each at its index; the first are the images.
        output: Index of the one that gives the logits.
        replaced: Whether anything in the network was replaced or added for it, so that it is not
            the graph of the network's own class as it stands.
        only: Height and width of the only images for which it is the network's, where paddings,
            reshapes or pools were made of the size; None if it is for any.
    """

    nodes: tuple[Node, ...]
    output: int
    replaced: bool = False
    only: tuple[int, int] | None = None

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    @functools.cached_property
    def data(self) -> tuple[Node, ...]:
        """The nodes on the way from the images to the logits, both included."""
        needed, todo = {self.output}, [self.output]
        while todo:
            fresh = set(self.nodes[todo.pop()].inputs) - needed
            needed |= fresh
            todo += fresh
        reached = {0}
        for node in self.nodes[1:]:
            if not reached.isdisjoint(node.inputs):
                reached.add(node.index)
        return tuple(node for node in self.nodes if node.index in needed & reached)

    @functools.cached_property
    def _users(self) -> dict[int, tuple[Node, ...]]:
        users: dict[int, list[Node]] = {node.index: [] for node in self.nodes}
        for node in self.data:
            for index in node.inputs:
                users[index].append(node)
        return {index: tuple(found) for index, found in users.items()}

    def users(self, node: Node) -> tuple[Node, ...]:
        """The nodes of `data` that take a node's value."""
        return self._users[node.index]

    def taken(self, node: Node) -> Node:
        """The first node whose value a node takes."""
        return self.nodes[node.inputs[0]]

    @functools.cached_property
    def cuts(self) -> tuple[int, ...]:
        """Positions in `data` of the nodes through whose value everything flows."""
        position = {node.index: place for place, node in enumerate(self.data)}
        found, furthest = [], 0
        for place, node in enumerate(self.data):
            if furthest <= place:
                found.append(place)
            last = max((position[user.index] for user in self.users(node)), default=place)
            furthest = max(furthest, last)
        return tuple(found)

    def between(self, before: Node, until: Node) -> tuple[Node, ...]:
        """The nodes of `data` after one of them and up to another."""
        return tuple(node for node in self.data if before.index < node.index <= until.index)

    def macs(self, nodes: Iterable[Node]) -> int:
        """Multiply-accumulates of some nodes."""
        return sum(node.macs for node in nodes)


class StatesGraph(nn.Module):
    """A network that knows its graph: exporting it, which takes seconds, would find the same."""

    def stated_graph(self, image: tuple[int, int, int]) -> Graph | None:
        """The graph, node for node as it is traced; None if a part is not as the class makes it.

        Hooks, patched methods and computed weights need not be looked for: the caller has.

        Args:
            image: Channels, height and width of the images.
        """
        raise NotImplementedError


@functools.cache
def operation(target: str) -> Any:
    """What `torch.ops` calls by a name such as 'aten.relu.default'."""
    found: Any = torch.ops
    for part in target.split("."):
        found = getattr(found, part)
    return found


def ways(graph: Graph, end: Node, section: Sequence[Node]) -> tuple[Node, ...]:
    """What a value is computed from within a section, in order."""
    inside = {node.index for node in section}
    found: set[int] = set()
    todo = [end.index]
    while todo:
        index = todo.pop()
        if index in inside and index not in found:
            found.add(index)
            todo += graph[index].inputs
    return tuple(node for node in section if node.index in found)
