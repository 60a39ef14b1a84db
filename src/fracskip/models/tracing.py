"""From a module to the graph of what it computes.

Convolutions, linear layers and BatchNorms stay layers of the module (`models.plain`); hooks, masks
and parametrizations are operations like others by then.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from fracskip.errors import ConfigError
from fracskip.models.draft import Draft
from fracskip.models.export import (
    RANDOM_NAMES,
    counted,
    exported,
    forward_of,
    name_of,
    shape_of,
    size_at,
)
from fracskip.models.graph import Batch, Device, Graph, Ref, StatesGraph, mapped
from fracskip.models.layers import as_made, copy_of
from fracskip.models.plain import PlainLayers
from fracskip.models.sizes import alike, other_sizes

# What gives the value that it takes, whatever it does to memory and to types of floats.
_SAME = (
    "alias", "clone", "contiguous", "detach", "detach_", "lift_fresh", "lift_fresh_copy", "to",
    "_to_copy", "type_as",
)  # fmt: skip
# What may give the value that it takes, if the shapes say so.
_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "expand", "expand_as", "slice", "copy")
# Where modules keep the share of what they drop.
_SHARES = ("p", "drop_prob", "drop_rate", "drop_path", "rate")
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def trace(net: nn.Module, image: tuple[int, int, int]) -> Graph:
    """A network's graph.

    Args:
        net: In evaluation mode. Inputs after the first keep their defaults. What is not a plain
            layer is replaced by one, in place, and hooks are taken off: the graph has what they
            did.
        image: Channels, height and width of the images. If the network's code computes something
            else for another size, the graph is for this one only; see `models.sizes`.

    Raises:
        ConfigError: if what it computes depends on values that it sees, such images do not go
            through it, or it gives no logits.
    """
    if isinstance(net, StatesGraph) and as_made(net):
        stated = net.stated_graph(image)
        if stated is not None:
            return stated
    twin = copy_of(net, shared=True)  # before its layers are replaced
    graph = _traced(net, image)
    if not _is_for_any_size(graph, net, twin, image):
        graph = replace(graph, only=image[1:])
    return graph


def _is_for_any_size(
    graph: Graph, net: nn.Module, twin: nn.Module, image: tuple[int, int, int]
) -> bool:
    """Whether a network traced at another size gives the same graph; no if it takes no other."""
    for size in other_sizes(image[1:]):
        other = copy_of(twin, shared=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what there is to say was said
                return alike(graph, net, _traced(other, (image[0], *size)), other)
        except ConfigError:
            continue
    return False


def _traced(net: nn.Module, image: tuple[int, int, int]) -> Graph:
    kind = type(net).__name__
    try:
        inspect.signature(forward_of(net)).bind(None)
    except TypeError:
        raise ConfigError(
            f"{kind}.forward does not take images alone: give a network whose other inputs have "
            "defaults"
        ) from None
    program = exported(net, image)
    if not program.call_spec.out_spec.is_leaf() or not program.graph_signature.user_outputs:
        raise ConfigError(
            f"{kind} gives {_given(program)}, not one tensor: wrap it in a module that returns the "
            "logits"
        )
    graph = _Translation(net, program).graph()
    if len(graph[graph.output].shape) != 2:
        raise ConfigError(
            f"{kind} gives values of shape {graph[graph.output].shape} for one image, not logits "
            "(1, classes): give a network that classifies"
        )
    return graph


def _given(program: Any) -> str:
    kind = program.call_spec.out_spec.type
    return "no tensor" if kind is None else str(kind.__name__)


class _Translation:
    """Makes nodes of a program, and plain layers of the network's."""

    def __init__(self, net: nn.Module, program: Any) -> None:
        self._net, self._program = net, program
        self._kind = type(net).__name__
        self._modules = dict(net.named_modules())
        # One that has several names goes by the first.
        first = {module: path for path, module in reversed(self._modules.items())}
        self._names = {
            path: first[module] for path, module in net.named_modules(remove_duplicate=False)
        }
        self._draft = Draft(net)
        self._layers = PlainLayers(net, self._modules, self._names, self._draft)
        self._values: dict[fx.Node, Any] = {}
        self._counter = FlopCounterMode(display=False)

    def graph(self) -> Graph:
        """The graph of the program; the network's layers are replaced."""
        signature = self._program.graph_signature
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        nodes = list(self._program.graph.nodes)
        given = [node for node in nodes if node.op == "placeholder"]
        # The images come first.
        for node in sorted(given, key=lambda n: specs[n.name].kind is not InputKind.USER_INPUT):
            self._placeholder(node, specs[node.name])
        with torch.no_grad(), self._counter:
            for node in nodes:
                if node.op == "call_function":
                    self._values[node] = self._call(node)
        kinds = [spec.kind for spec in signature.output_specs]
        last = self._arguments(nodes[-1].args[0][kinds.index(OutputKind.USER_OUTPUT)])
        if not isinstance(last, Ref) or last.node not in self._draft.live:
            raise ConfigError(f"what {self._kind} gives does not depend on its images")
        self._refuse_memory(last.node)
        graph = self._draft.finished(last.node)
        self._note_left_out()
        replaced = self._layers.replace() or bool(self._draft.literals)
        return replace(graph, replaced=replaced)

    def _refuse_memory(self, output: int) -> None:
        """Refuses what gives other logits each time that it is called."""
        needed = self._draft.needed_by(output)
        for spec in self._program.graph_signature.output_specs:
            if spec.kind is OutputKind.BUFFER_MUTATION and any(
                self._draft.nodes[index].path == spec.target for index in needed
            ):
                raise ConfigError(
                    f"{self._kind} changes its buffer {spec.target} and computes with it: what it "
                    "gives may depend on its images alone"
                )

    # -- places ----------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        value = node.meta["val"]
        shape = shape_of(value)
        if spec.kind is InputKind.USER_INPUT:
            found = self._draft.add("images", shape=shape)
            self._draft.live.add(found.node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            found = self._draft.add("tensor", shape=shape, path=spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            found = self._draft.literal(self._program.constants[spec.target])
        else:
            raise ConfigError(f"{self._kind} computes with {spec.target}, which is no tensor")
        self._values[node] = found

    def _stack(self, node: fx.Node) -> list[str]:
        """Paths of the modules whose code makes a node, from the outermost."""
        stack = node.meta.get("nn_module_stack", {}).values()
        names = [path.partition("@")[0] for path, _ in stack]
        return [self._names[name] for name in names if name in self._names]

    def _place(self, stack: list[str]) -> dict[str, str]:
        """Where an operation belongs to: see `Node`."""
        return {"owner": self._owner(stack), "where": stack[-1] if stack else ""}

    def _owner(self, stack: list[str]) -> str:
        for path in reversed(stack):
            module = self._modules[path]
            ours = not type(module).__module__.startswith("torch.nn.")
            if next(module.children(), None) is not None or (
                ours and next(module.parameters(), None) is not None
            ):
                return path
        return ""

    # -- operations ------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            return counted(value)
        if value is None or isinstance(value, torch.SymBool | torch.SymFloat | bool | float):
            return None  # a check
        args = self._arguments(node.args)
        kwargs = {
            key: self._arguments(each)
            for key, each in node.kwargs.items()
            if key not in ("memory_format", "layout", "pin_memory") and each is not None
        }
        name, stack = name_of(node.target), self._stack(node)
        same = self._same(name, node, args, kwargs)
        if same is not None:
            return same
        if name == "add" and isinstance(args[1], Ref) and "alpha" in kwargs:
            factor = kwargs.pop("alpha")
            other = self._draft.nodes[args[1].node]
            args[1] = self._draft.add(
                "mul", **self._place(stack), args=(args[1], factor), shape=other.shape,
                target="aten.mul.Tensor" if isinstance(factor, Ref) else "aten.mul.Scalar",
            )  # fmt: skip
        layer = self._layers.find(name, args, kwargs, stack)
        if layer is None:
            return self._operation(name, node, args, kwargs, stack)
        op, path = layer
        return self._draft.add(
            op, **self._place(stack), args=(args[0],), shape=shape_of(value),
            macs=self._macs(node), path=path,
        )  # fmt: skip

    def _arguments(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            return self._values[given]
        if isinstance(given, torch.SymInt):
            return counted(given)
        if isinstance(given, torch.device):
            return Device()
        if isinstance(given, tuple | list):
            return [self._arguments(each) for each in given]
        return given

    def _same(self, name: str, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The value that an operation hands on as it is; None if it computes something."""
        if name == "" and self._is_norm(args[0]):
            return args[0] if args[1] == 0 else None  # what a BatchNorm gives beside its values
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not isinstance(node.meta["val"], Tensor):
            return None
        given, taken = node.meta["val"], first.meta["val"]
        if not isinstance(taken, Tensor):
            return None
        floats = given.is_floating_point() and taken.is_floating_point()
        if name in _SAME and (floats or given.dtype == taken.dtype):
            return args[0]
        alike = given.shape == taken.shape and given.dtype == taken.dtype
        if name == "copy" and isinstance(args[1], Ref):
            other = node.args[1].meta["val"]  # type: ignore[union-attr]
            return args[1] if other.shape == given.shape and floats else None
        if name in _RESHAPES and alike and args[4:5] in ([], [1]):
            return args[0]
        neutral = _NEUTRAL.get(name)
        plain = len(args) == 2 and not kwargs and not isinstance(args[1], Ref | Batch)
        return args[0] if alike and plain and neutral is not None and args[1] == neutral else None

    def _is_norm(self, value: Any) -> bool:
        return isinstance(value, Ref) and self._draft.nodes[value.node].op == "batch_norm"

    def _operation(
        self, name: str, node: fx.Node, args: list[Any], kwargs: dict[str, Any], stack: list[str]
    ) -> Ref:
        place, value = self._place(stack), node.meta["val"]
        shape = shape_of(value)
        if str(node.target) == "fracskip.only_in_training.default":
            module = self._modules[stack[-1]] if stack else None
            own = args[1] == "module" or isinstance(module, _DropoutNd)
            taken = args[:1] if own else args
            path = stack[-1] if own else ""
            return self._draft.add("dropout", **place, args=tuple(taken), shape=shape, path=path)
        if not name:
            return self._draft.add("getitem", **place, args=tuple(args), shape=shape)
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise ConfigError(
                f"{self._kind} draws random numbers in evaluation mode ({name} in "
                f"{place['where'] or 'its own code'}): pass training=self.training to dropouts"
            )
        target = str(node.target)
        if name in ("view", "_unsafe_view"):  # values may lie in memory with channels last
            name, target = "reshape", "aten.reshape.default"
        found = self._draft.add(
            name.removesuffix("_"), **place, args=tuple(args), kwargs=kwargs, shape=shape,
            macs=self._macs(node), target=target,
        )  # fmt: skip
        inputs = self._draft.nodes[found.node].inputs
        literal = isinstance(value, Tensor) and all(each in self._draft.literals for each in inputs)
        if literal and not _counts((args, kwargs)):
            return self._draft.literal(self._draft.value(found.node))
        return found

    def _macs(self, node: fx.Node) -> int:
        """What an operation costs for one image; nothing is computed."""

        def empty(each: fx.Node) -> Any:
            value = each.meta["val"]
            if isinstance(value, Tensor):
                return torch.empty(shape_of(value), dtype=value.dtype, device="meta")
            return size_at(value, 1) if isinstance(value, torch.SymInt) else value

        if any(isinstance(each.meta.get("val"), tuple | list) for each in node.all_input_nodes):
            return 0
        args, kwargs = fx.map_arg((node.args, node.kwargs), empty)
        kwargs = {key: "meta" if key == "device" else each for key, each in kwargs.items()}
        before = self._counter.get_total_flops()
        target: Any = node.target
        try:
            target(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            return 0  # of no kernel without data there is a count either
        return (self._counter.get_total_flops() - before) // 2

    def _note_left_out(self) -> None:
        """Says which modules that are random in training evaluation leaves no trace of."""
        executed = {node.where for node in self._draft.nodes}
        for path, module in self._modules.items():
            share = next((getattr(module, n, None) for n in _SHARES if hasattr(module, n)), None)
            known = isinstance(module, _DropoutNd) or type(module).__name__ in RANDOM_NAMES
            bare = next(module.children(), None) is None and not module.state_dict()
            if bare and not known and path not in executed and isinstance(share, float) and share:
                warnings.warn(
                    f"{path!r} ({type(module).__name__}) does nothing in evaluation mode, so it is "
                    "off in training, too: torch's dropouts and stochastic depth are not",
                    stacklevel=2,
                )


def _counts(template: Any) -> bool:
    """Whether arguments depend on the number of images."""
    found: list[Batch] = []
    mapped(template, lambda each: found.append(each) if isinstance(each, Batch) else each)
    return bool(found)
