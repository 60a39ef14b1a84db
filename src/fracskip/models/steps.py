"""Parts of a network, executed: consecutive nodes of its graph as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fracskip.errors import ConfigError
from fracskip.models.graph import Batch, Device, Graph, Node, Ref, mapped, operation, references


@dataclass(frozen=True)
class Step:
    """One node, ready to be executed.

    Attributes:
        path: Of its layer, '' where it calls none.
        module: That layer.
        call: What is called: the layer, or an operation.
        args: Its arguments; references are to slots.
        kwargs: Likewise, by name.
        into: The slot of its value.
    """

    path: str
    module: nn.Module | None
    call: Callable[..., Any]
    args: Any
    kwargs: Any
    into: int


# What executes a layer for several groups of images: of their arguments, the values.
Execute = Callable[[Step, list[tuple[Any, ...]]], list[Any]]


def plainly(step: Step, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Executes a layer as it is."""
    return [step.call(*args) for args in arguments]


class Steps:
    """Consecutive nodes of a graph as a function of what flows into them.

    Several groups of images go through it side by side, each step executing all groups before the
    next one begins.

    Args:
        net: The network: layers and tensors are found in it now, so convert layers before.
        graph: Its graph.
        nodes: The nodes to execute; what they need beside the inputs is added.
        inputs: The nodes whose values are given, in the order in which they are.
        output: The node whose value is asked for.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        nodes: Iterable[Node],
        inputs: Sequence[Node],
        output: Node,
    ) -> None:
        slots = {node.index: slot for slot, node in enumerate(inputs)}
        self.steps: list[Step] = []
        for index in _needed(graph, [*nodes, output], set(slots)):
            node = graph[index]

            def slot(each: Any) -> Any:
                return Ref(slots[each.node]) if isinstance(each, Ref) else each

            args, kwargs = mapped((node.args, node.kwargs), slot)
            slots[index] = len(slots)
            self.steps.append(_step(net, node, args, kwargs, slots[index]))
        self._output = slots[output.index]
        self._size = len(slots)
        self._inputs = len(inputs)
        # Rows of the first value that belong to one image.
        self._rows = inputs[0].shape[0] if inputs else 1
        self._ends = self._last_uses()

    def _last_uses(self) -> list[list[int]]:
        """The slots that no later step needs, after each step."""
        last = {}
        for position, step in enumerate(self.steps):
            for slot in references((step.args, step.kwargs)):
                last[slot] = position
        ends: list[list[int]] = [[] for _ in self.steps]
        for slot, position in last.items():
            if slot != self._output:
                ends[position].append(slot)
        return ends

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __call__(self, *values: Any, execute: Execute = plainly) -> Any:
        """The output for one group of images."""
        (found,) = self.run([values], execute)
        return found

    def run(self, groups: Sequence[tuple[Any, ...]], execute: Execute = plainly) -> list[Any]:
        """The output for each group.

        Args:
            groups: The inputs' values for each group of images.
            execute: What executes steps that call a layer.
        """
        kept = [_Values(values, self._size, self._rows) for values in groups]
        for step, ends in zip(self.steps, self._ends, strict=True):
            if step.module is not None:
                found = execute(step, [values.filled(step.args) for values in kept])
            else:
                found = [
                    step.call(*values.filled(step.args), **values.filled(step.kwargs))
                    for values in kept
                ]
            for values, value in zip(kept, found, strict=True):
                values.slots[step.into] = value
                for slot in ends:
                    values.slots[slot] = None
        return [values.slots[self._output] for values in kept]


class _Values:
    """The values of one group of images."""

    def __init__(self, given: Sequence[Any], size: int, rows: int) -> None:
        self.slots: list[Any] = [*given, *[None] * (size - len(given))]
        self._first, self._rows = (given[0] if given else None), rows

    def filled(self, template: Any) -> Any:
        """Arguments with values in the places of what stands for them."""
        return mapped(template, self._value)

    def _value(self, each: Any) -> Any:
        if isinstance(each, Ref):
            return self.slots[each.node]
        if isinstance(each, Device):
            return "cpu" if self._first is None else self._first.device
        assert isinstance(each, Batch)
        count = 1 if self._first is None else len(self._first) // self._rows
        return each.times * count


class _Tensor:
    """Finds a parameter or buffer anew each time, wherever the network has gone since."""

    def __init__(self, net: nn.Module, path: str) -> None:
        parent, _, self._name = path.rpartition(".")
        self._parent = net.get_submodule(parent)

    def __call__(self) -> Any:
        return getattr(self._parent, self._name)


class _Operation:
    """An operation of `torch.ops`, which can't be pickled itself."""

    def __init__(self, target: str) -> None:
        self._target, self._call = target, operation(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Operation, (self._target,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class _Dropout:
    """A dropout in a module's own code, on while that module is in training."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner

    def __call__(self, x: Tensor, kind: str, share: float) -> Any:
        return getattr(torch, kind)(x, share, self._owner.training)


def _take(values: Any, index: int) -> Any:
    return values[index]


def _needed(graph: Graph, wanted: Sequence[Node], given: set[int]) -> list[int]:
    """What must be executed for some nodes, beside what is given, in order."""
    found: set[int] = set()
    todo = [node.index for node in wanted]
    while todo:
        index = todo.pop()
        if index not in given and index not in found:
            found.add(index)
            todo += graph[index].inputs
    return sorted(found)


def _step(net: nn.Module, node: Node, args: Any, kwargs: Any, into: int) -> Step:
    module: nn.Module | None = None
    call: Callable[..., Any]
    if node.op == "tensor":
        call = _Tensor(net, node.path)
    elif node.path:
        module = call = net.get_submodule(node.path)
    elif node.op == "dropout":
        call = _Dropout(net.get_submodule(node.owner))
    elif node.op == "getitem":
        call = _take
    else:
        assert node.target, f"{node.name} is no step"
        call = _Operation(node.target)
    return Step(node.path, module, call, args, kwargs, into)


class TracedNetwork(nn.Module):
    """A network that executes its graph: its layers keep their names, its own code is not run.

    Args:
        net: The network; layers and tensors are shared with it, not copied.
        graph: Its graph.

    Attributes:
        graph: Likewise.
    """

    def __init__(self, net: nn.Module, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._modules.update(net._modules)
        self._parameters.update(net._parameters)
        self._buffers.update(net._buffers)
        self._non_persistent_buffers_set.update(net._non_persistent_buffers_set)
        self._steps = Steps(self, graph, (), [graph[0]], graph[graph.output])
        self.training = net.training

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, N).

        Raises:
            ConfigError: for images of another size than the graph is for, if it is for one.
        """
        size, only = tuple(images.shape[2:]), self.graph.only
        if only not in (None, size):
            raise ConfigError(
                f"images of size {size} do not fit: the network was traced on {only}, and its own "
                "code pads, reshapes or pools by the size; resize them, or convert or quantize it "
                "anew for images of their size"
            )
        logits: Tensor = self._steps(images)
        return logits
