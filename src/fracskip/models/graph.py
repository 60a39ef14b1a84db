"""A network as a graph of steps: traced once, then executed in parts.

A network is traced in evaluation mode, down to the layers that have none inside them
(torch.fx). What its own code does between them - sums, permutations, means - becomes steps too, so
that parts of it can be executed by themselves while every module stays where it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fracskip.errors import ConfigError

# Layers that are called whole although their kind may have parts of its own.
WHOLE = (nn.BatchNorm2d, nn.LayerNorm)

_ADAPTERS: dict[type[nn.Module], Callable[..., Any]] = {}


def register_adapter(kind: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Says what modules of a kind compute, in code that can be traced.

    For modules whose own `forward` cannot be: because it looks at values, or at their shape. The
    adapter is called in its place, while tracing alone.

    Args:
        kind: The module's exact class.
        forward: Takes the module and its inputs and calls the module's parts: what is added to a
            shortcut must be seen to be.
    """
    _ADAPTERS[kind] = forward


class _Tracer(fx.Tracer):
    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        def alone(net: nn.Module, images: Any) -> Any:
            return root_fn(net, images)

        return super().create_args_for_root(alone, is_module, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in _ADAPTERS:
            return False
        return isinstance(m, WHOLE) or next(m.children(), None) is None

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        adapter = _ADAPTERS.get(type(m))
        if adapter is not None:
            forward = functools.partial(adapter, m)
        return super().call_module(m, forward, args, kwargs)


def trace(net: nn.Module) -> fx.Graph:
    """A network's graph from one input to one output; what does not reach the output is left out.

    Args:
        net: In evaluation mode. Inputs after the first keep their defaults.

    Raises:
        ConfigError: if what it computes depends on values that it sees, or it has no such input.
    """
    try:
        inspect.signature(net.forward).bind(None)
    except TypeError:
        raise ConfigError(
            f"{type(net).__name__}.forward does not take images alone: give a network whose other "
            "inputs have defaults"
        ) from None
    try:
        graph = _Tracer().trace(net)
    except ConfigError:
        raise
    except Exception as error:  # tracing runs the network's own code: it may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(net).__name__} cannot be traced ({reason}): what it executes may not depend on "
            "the values or sizes that it sees; say what its modules compute with "
            "fracskip.register_adapter"
        ) from error
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise ConfigError(
            f"{type(net).__name__} gives {type(output.args[0]).__name__}, not one tensor: wrap it "
            "in a module that returns the logits"
        )
    return graph


def module_of(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a step calls, if it calls one."""
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def owner(node: fx.Node) -> str:
    """Path of the module whose code makes a step: '' for the network's own."""
    stack = list(node.meta.get("nn_module_stack", {}))
    if node.op == "call_module":
        return str(node.target).rpartition(".")[0]
    # The second call of a module is told from the first by '@1'.
    return stack[-1].partition("@")[0] if stack else ""


def data_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes on the way from the first input to the output, in order, both included."""
    start, *_ = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    needed, todo = set(), [output]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    reached = {start}
    for node in graph.nodes:
        if any(each in reached for each in node.all_input_nodes):
            reached.add(node)
    return [node for node in graph.nodes if node in needed and node in reached]


def cuts(nodes: Sequence[fx.Node]) -> list[int]:
    """Positions of the nodes through whose value everything flows.

    Args:
        nodes: As `data_nodes` gives them.
    """
    position = {node: index for index, node in enumerate(nodes)}
    last_use = [
        max((position[user] for user in node.users if user in position), default=index)
        for index, node in enumerate(nodes)
    ]
    found, furthest = [], 0
    for index, last in enumerate(last_use):
        if furthest <= index:
            found.append(index)
        furthest = max(furthest, last)
    return found


@dataclass(frozen=True)
class Measured:
    """What a node gives for one image.

    Attributes:
        shape: Of its value; () where that is no tensor.
        macs: Multiply-accumulates, as `torch.utils.flop_counter` counts them.
    """

    shape: tuple[int, ...]
    macs: int


class _Meter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self._counter = counter
        self.found: dict[str, Measured] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        value = super().run_node(n)
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        self.found[n.name] = Measured(shape, (self._counter.get_total_flops() - before) // 2)
        return value


def measure(net: nn.Module, graph: fx.Graph, image: tuple[int, int, int]) -> dict[str, Measured]:
    """Shapes and costs of all nodes by name, for one image; nothing is computed.

    Args:
        net: The traced network.
        graph: Its graph.
        image: Channels, height and width.

    Raises:
        ConfigError: if such an image does not go through the network.
    """
    counter = FlopCounterMode(display=False)
    meter = _Meter(fx.GraphModule(copy.deepcopy(net).to("meta"), graph), counter)
    try:
        with torch.no_grad(), counter:
            meter.run(torch.empty(1, *image, device="meta"))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).partition("While executing")[0].split())[:200]
        raise ConfigError(
            f"an image of shape {image} does not go through {type(net).__name__} ({reason}): give "
            "an example_input of a shape that it takes"
        ) from error
    return meter.found


@dataclass(frozen=True)
class _Slot:
    """Stands for a value that an earlier step gave."""

    index: int


@dataclass(frozen=True)
class Step:
    """One node, ready to be executed.

    Attributes:
        name: The node's.
        target: Path of its module, '' where it calls none.
        module: That module.
        call: What is called: the module, a function, or a method by name.
        args: Its arguments; slots stand for values.
        kwargs: Likewise, by name.
        into: The slot of its value.
    """

    name: str
    target: str
    module: nn.Module | None
    call: Callable[..., Any]
    args: Any
    kwargs: Any
    into: int


# What executes a step for several groups of images: of their arguments, the values.
Execute = Callable[[Step, list[tuple[Any, ...]]], list[Any]]


def plainly(step: Step, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Executes a module as it is."""
    return [step.call(*args) for args in arguments]


class Steps:
    """Consecutive nodes of a graph as a function of what flows into them.

    Several groups of images go through it side by side, each step executing all groups before the
    next one begins.

    Args:
        net: The network: modules and constants are found in it now, so convert layers before.
        nodes: The nodes to execute, in order; constants that they need are added.
        inputs: The nodes whose values are given.
        output: The node whose value is asked for.
    """

    def __init__(
        self,
        net: nn.Module,
        nodes: Iterable[fx.Node],
        inputs: Sequence[fx.Node],
        output: fx.Node,
    ) -> None:
        slots = {node: index for index, node in enumerate(inputs)}
        self.steps: list[Step] = []

        def add(node: fx.Node) -> _Slot:
            if node not in slots:
                for needed in node.all_input_nodes:
                    add(needed)
                args, kwargs = fx.map_arg((node.args, node.kwargs), add)  # type: ignore[arg-type]
                slots[node] = len(slots)
                self.steps.append(_step(net, node, args, kwargs, slots[node]))
            return _Slot(slots[node])

        for node in nodes:
            add(node)
        self._output = add(output).index
        self._size = len(slots)
        self._inputs = len(inputs)
        self._ends = self._last_uses()

    def _last_uses(self) -> list[list[int]]:
        """The slots that no later step needs, after each step."""
        last = {}
        for position, step in enumerate(self.steps):
            for slot in _slots_in((step.args, step.kwargs)):
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
            execute: What executes steps that call a module.
        """
        kept = [[*values, *[None] * (self._size - self._inputs)] for values in groups]
        for step, ends in zip(self.steps, self._ends, strict=True):
            if step.module is not None and not step.kwargs:
                arguments = [_filled(step.args, values) for values in kept]
                found = execute(step, arguments)
            else:
                found = [
                    step.call(*_filled(step.args, values), **_filled(step.kwargs, values))
                    for values in kept
                ]
            for values, value in zip(kept, found, strict=True):
                values[step.into] = value
                for slot in ends:
                    values[slot] = None
        return [values[self._output] for values in kept]


class _Constant:
    """Looks up a parameter or buffer anew each time, wherever the network has gone since."""

    def __init__(self, net: nn.Module, path: str) -> None:
        parent, _, self._name = path.rpartition(".")
        self._parent = net.get_submodule(parent)

    def __call__(self) -> Any:
        return getattr(self._parent, self._name)


class _Method:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, self._name)(*args, **kwargs)


def _step(net: nn.Module, node: fx.Node, args: Any, kwargs: Any, into: int) -> Step:
    target, module, call = "", None, node.target
    if node.op == "call_module":
        target = str(node.target)
        module = call = net.get_submodule(target)
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        args, kwargs = bound.args, bound.kwargs
    elif node.op == "call_method":
        call = _Method(str(node.target))
    elif node.op == "get_attr":
        call = _Constant(net, str(node.target))
    assert callable(call), f"a {node.op} is no step"
    return Step(node.name, target, module, call, args, kwargs, into)


def _slots_in(template: Any) -> set[int]:
    found: set[int] = set()
    _mapped(template, lambda slot: found.add(slot.index))
    return found


def _filled(template: Any, values: list[Any]) -> Any:
    return _mapped(template, lambda slot: values[slot.index])


def _mapped(template: Any, function: Callable[[_Slot], Any]) -> Any:
    if isinstance(template, _Slot):
        return function(template)
    if isinstance(template, tuple | list):
        return type(template)(_mapped(each, function) for each in template)
    if isinstance(template, dict):
        return {key: _mapped(each, function) for key, each in template.items()}
    if isinstance(template, slice):
        return slice(*(_mapped(getattr(template, a), function) for a in ("start", "stop", "step")))
    return template
