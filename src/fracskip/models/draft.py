"""The nodes of a graph while it is made, and what the network's tensors make of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fracskip.models.graph import Graph, Node, Ref, mapped, operation


class Draft:
    """Nodes in order of execution.

    Args:
        net: The network whose parameters and buffers they name.

    Attributes:
        nodes: Each at its index; the first are the images.
        live: Those that depend on the images.
        literals: The values of those that depend on nothing.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.nodes: list[Node] = []
        self.live: set[int] = set()
        self.literals: dict[int, Tensor] = {}

    def add(self, op: str, **parts: Any) -> Ref:
        """Adds a node; see `Node` for its parts."""
        index = len(self.nodes)
        self.nodes.append(Node(index, "", op, **parts))
        if not self.live.isdisjoint(self.nodes[index].inputs):
            self.live.add(index)
        return Ref(index)

    def literal(self, value: Tensor) -> Ref:
        """Adds a value that depends on nothing."""
        found = self.add("tensor", shape=tuple(value.shape))
        self.literals[found.node] = value.detach()
        return found

    def value(self, index: int) -> Any:
        """The present value of what does not depend on the images."""
        node = self.nodes[index]
        if index in self.literals:
            return self.literals[index]
        if node.op == "tensor":
            return self.tensor(node.path)
        args, kwargs = mapped((node.args, node.kwargs), self._valued)
        return args[0][args[1]] if node.op == "getitem" else operation(node.target)(*args, **kwargs)

    def _valued(self, each: Any) -> Any:
        return self.value(each.node) if isinstance(each, Ref) else "cpu"

    def tensor(self, path: str) -> Tensor:
        """The network's parameter or buffer of a path."""
        parent, _, name = path.rpartition(".")
        found: Tensor = getattr(self._net.get_submodule(parent), name)
        return found

    def needed_by(self, index: int) -> set[int]:
        """The nodes that one is computed from, itself included."""
        found, todo = {index}, [index]
        while todo:
            fresh = set(self.nodes[todo.pop()].inputs) - found
            found |= fresh
            todo += fresh
        return found

    def finished(self, output: int) -> Graph:
        """The graph of what the output needs; literals become buffers of the network."""
        needed = sorted({0, *self.needed_by(output)})
        numbers = {old: new for new, old in enumerate(needed)}
        seen: Counter[str] = Counter()
        nodes = []
        for old in needed:
            node = self.nodes[old]
            path = node.path
            if old in self.literals:
                path = f"_constant_{seen['constant']}"
                seen["constant"] += 1
                self._net.register_buffer(path, self.literals[old], persistent=False)
            count = seen[node.op]
            seen[node.op] += 1
            args, kwargs = mapped(
                (node.args, node.kwargs),
                lambda each: Ref(numbers[each.node]) if isinstance(each, Ref) else each,
            )
            name = f"{node.op}_{count}" if count else node.op
            nodes.append(
                replace(node, index=numbers[old], name=name, args=args, kwargs=kwargs, path=path)
            )
        return Graph(tuple(nodes), numbers[output])
