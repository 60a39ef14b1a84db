"""A program while nodes of a traced network are lowered to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fracskip.deployment.lowered import Layout, Lowered, Source, Value
from fracskip.errors import ConfigError
from fracskip.models.graph import Graph, Node, Ref
from fracskip.models.padding import NO_PADDING
from fracskip.models.steps import Steps
from fracskip.runtime.operations import Op, PoolOp


class ProgramDraft:
    """Operations so far, and which of their values each node gives.

    Zeros around an image are left to whoever takes it: convolutions and most pools add them
    themselves. For all others there is an operation that does.

    Args:
        net: The network.
        graph: Its graph.
        entry: The node whose value the program takes.
        taken: That value.
    """

    def __init__(self, net: nn.Module, graph: Graph, entry: Node, taken: Value) -> None:
        self._net, self._graph = net, graph
        self._values = {entry.index: Value(0, taken.layout, taken.shape)}
        self._ops: list[Op] = []
        self._sources: list[Source] = []

    def finished(self, output: Node) -> Lowered:
        """The program that gives a node's value."""
        value = self._known(Ref(output.index))
        assert value is not None
        if value.index != len(self._ops):
            self._refuse(output, "its value is not the last one")
        return Lowered(tuple(self._ops), tuple(self._sources), value)

    def _refuse(self, node: Node, why: str) -> NoReturn:
        raise ConfigError(
            f"{node} has no place in a bundle: {why}; execute the checkpoint itself, with torch "
            "(fracskip eval CHECKPOINT)"
        )

    def _add(self, op: Op, source: Source = None) -> int:
        """Adds an operation; the number of its value."""
        self._ops.append(op)
        self._sources.append(source)
        return len(self._ops)

    def _give(self, node: Node, op: Op, source: Source = None, layout: Layout = "first") -> None:
        self._values[node.index] = Value(self._add(op, source), layout, node.shape)

    def _same(self, node: Node, layout: Layout | None = None, shape: Any = None) -> None:
        """The node gives what it takes, as a bundle sees it."""
        value = self._taken(node)
        self._values[node.index] = Value(value.index, layout or value.layout, shape or node.shape)

    def _pass_through(self, node: Node) -> None:
        """The node gives what it takes, zeros that are still to be added included."""
        self._values[node.index] = self._unpadded(node)

    def _known(self, given: Any) -> Value | None:
        """The value that an argument stands for; None if it is none of this part's."""
        if not isinstance(given, Ref) or given.node not in self._values:
            return None
        value = self._values[given.node]
        if value.padding != NO_PADDING:
            one = (1, 1)
            op = PoolOp(
                inputs=(value.index,), kind="mean", kernel=one, stride=one, padding=value.padding,
                count_padding=True,
            )  # fmt: skip
            value = replace(value, index=self._add(op), padding=NO_PADDING)
            self._values[given.node] = value
        return value

    def _taken(self, node: Node) -> Value:
        """What a node takes."""
        self._unpadded(node)
        value = self._known(node.args[0])
        assert value is not None
        return value

    def _unpadded(self, node: Node) -> Value:
        """What a node takes, with zeros around it that are still to be added."""
        given = node.args[0]
        if not isinstance(given, Ref) or given.node not in self._values:
            self._refuse(node, "what it takes is not computed in this part")
        return self._values[given.node]

    def _constant(self, given: Any) -> Tensor | None:
        """The value of what does not depend on the images; None if that is no tensor."""
        if isinstance(given, int | float) and not isinstance(given, bool):
            return torch.tensor(float(given))
        if not isinstance(given, Ref) or self._graph[given.node] in self._graph.data:
            return None
        found = Steps(self._net, self._graph, (), (), self._graph[given.node])()
        return found.detach() if isinstance(found, Tensor) else None

    def _producer(self, node: Node) -> int | None:
        """The operation that gives what a node takes, if nothing else sees that."""
        index = self._taken(node).index
        before = self._graph.taken(node)
        while index:
            if len(self._graph.users(before)) != 1:
                return None
            given = before.args[0]
            earlier = self._values.get(given.node) if isinstance(given, Ref) else None
            if earlier is None or earlier.index != index:
                return index - 1
            before = self._graph.taken(before)
        return None
