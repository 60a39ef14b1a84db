"""From a module to the graph of what it computes.

Convolutions, linear layers and BatchNorms stay layers of the module, found by the path of their
weights. One that is not a plain layer - its class computes more, its weights are computed, it has
hooks - is replaced by a plain one that does what the graph says of it: hooks, masks and
parametrizations are operations like others by then.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from fracskip.errors import ConfigError
from fracskip.models import layers
from fracskip.models.export import (
    RANDOM_NAMES,
    counted,
    exported,
    forward_of,
    name_of,
    shape_of,
    size_at,
)
from fracskip.models.graph import Batch, Device, Graph, Node, Ref, mapped, operation

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
_BATCH_NORMS = ("_native_batch_norm_legit_no_training", "batch_norm", "cudnn_batch_norm")


def trace(net: nn.Module, image: tuple[int, int, int]) -> Graph:
    """A network's graph.

    Args:
        net: In evaluation mode. Inputs after the first keep their defaults. What is not a plain
            layer is replaced by one, in place, and hooks are taken off: the graph has what they
            did.
        image: Channels, height and width of the images.

    Raises:
        ConfigError: if what it computes depends on values that it sees, such images do not go
            through it, or it gives no logits.
    """
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
        self._nodes: list[Node] = []
        self._values: dict[fx.Node, Any] = {}
        self._live: set[int] = set()  # depend on the images
        self._literals: dict[int, Tensor] = {}  # depend on nothing
        self._dims: dict[int, int] = {}
        self._layers: dict[str, nn.Module] = {}
        self._folded: list[str] = []
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
        if not isinstance(last, Ref) or last.node not in self._live:
            raise ConfigError(f"what {self._kind} gives does not depend on its images")
        self._refuse_memory(last.node)
        graph = self._pruned(last.node)
        self._note_left_out()
        self._replace_layers()
        return graph

    def _refuse_memory(self, output: int) -> None:
        """Refuses what gives other logits each time that it is called."""
        needed = _needed_by(self._nodes, output)
        for spec in self._program.graph_signature.output_specs:
            if spec.kind is OutputKind.BUFFER_MUTATION and any(
                self._nodes[index].path == spec.target for index in needed
            ):
                raise ConfigError(
                    f"{self._kind} changes its buffer {spec.target} and computes with it: what it "
                    "gives may depend on its images alone"
                )

    # -- values ----------------------------------------------------------------------------------

    def _add(self, op: str, **parts: Any) -> Ref:
        index = len(self._nodes)
        self._nodes.append(Node(index, "", op, **parts))
        if not self._live.isdisjoint(self._nodes[index].inputs):
            self._live.add(index)
        return Ref(index)

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        value = node.meta["val"]
        shape = shape_of(value)
        if spec.kind is InputKind.USER_INPUT:
            found = self._add("images", shape=shape)
            self._live.add(found.node)
            self._dims[found.node] = value.dim()
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            found = self._add("tensor", shape=shape, path=spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            found = self._literal(self._program.constants[spec.target])
        else:
            raise ConfigError(f"{self._kind} computes with {spec.target}, which is no tensor")
        self._values[node] = found

    def _literal(self, value: Tensor) -> Ref:
        found = self._add("tensor", shape=tuple(value.shape))
        self._literals[found.node] = value.detach()
        return found

    def _value(self, index: int) -> Any:
        """The present value of what does not depend on the images."""
        node = self._nodes[index]
        if index in self._literals:
            return self._literals[index]
        if node.op == "tensor":
            return self._tensor(node.path)
        args, kwargs = mapped((node.args, node.kwargs), self._valued)
        return args[0][args[1]] if node.op == "getitem" else operation(node.target)(*args, **kwargs)

    def _valued(self, each: Any) -> Any:
        return self._value(each.node) if isinstance(each, Ref) else "cpu"

    def _tensor(self, path: str) -> Tensor:
        parent, _, name = path.rpartition(".")
        found: Tensor = getattr(self._net.get_submodule(parent), name)
        return found

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
            other = self._nodes[args[1].node]
            args[1] = self._add(
                "mul", **self._place(stack), args=(args[1], factor), shape=other.shape,
                target="aten.mul.Tensor" if isinstance(factor, Ref) else "aten.mul.Scalar",
            )  # fmt: skip
        found = self._layer(name, node, args, kwargs, stack)
        if found is None:
            found = self._operation(name, node, args, kwargs, stack)
        if isinstance(value, Tensor):
            self._dims[found.node] = value.dim()
        return found

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
        return isinstance(value, Ref) and self._nodes[value.node].op == "batch_norm"

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
            return self._add("dropout", **place, args=tuple(taken), shape=shape, path=path)
        if not name:
            return self._add("getitem", **place, args=tuple(args), shape=shape)
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise ConfigError(
                f"{self._kind} draws random numbers in evaluation mode ({name} in "
                f"{place['where'] or 'its own code'}): pass training=self.training to dropouts"
            )
        target = str(node.target)
        if name in ("view", "_unsafe_view"):  # values may lie in memory with channels last
            name, target = "reshape", "aten.reshape.default"
        found = self._add(
            name.removesuffix("_"), **place, args=tuple(args), kwargs=kwargs, shape=shape,
            macs=self._macs(node), target=target,
        )  # fmt: skip
        inputs = self._nodes[found.node].inputs
        literal = isinstance(value, Tensor) and all(each in self._literals for each in inputs)
        if literal and not _counts((args, kwargs)):
            return self._literal(self._value(found.node))
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

    # -- layers ----------------------------------------------------------------------------------

    def _layer(
        self, name: str, node: fx.Node, args: list[Any], kwargs: dict[str, Any], stack: list[str]
    ) -> Ref | None:
        """The call of a layer, if an operation is one whose weights a module holds."""
        if not args or not isinstance(args[0], Ref) or args[0].node not in self._live:
            return None
        if name in ("conv2d", "linear"):
            op, (weight, bias) = name, (*args[1:3], None)[:2]
        elif name in _BATCH_NORMS:
            if name == "batch_norm" and args[5]:
                raise ConfigError(
                    f"{stack[-1] if stack else self._kind} normalises by the statistics of the "
                    "batch in evaluation mode, too: an image's logits depend on the others; "
                    "give it running statistics (track_running_stats=True)"
                )
            op, (weight, bias) = "batch_norm", args[1:3]
        else:
            return None
        mean = args[3] if op == "batch_norm" else None
        path = self._holder(op, weight or mean, stack)
        if path is None:
            return None
        if not self._stays(op, path, weight, bias):
            new = self._plain(op, args, kwargs, weight, bias)
            old, earlier = self._modules[path], self._layers.get(path)
            if earlier is not None and repr(earlier) != repr(new):
                return None
            used = [
                self._nodes[index].path.rpartition(".")[2]
                for each in (weight, bias)
                if each is not None and self._nodes[each.node].op != "tensor"
                for index in _needed_by(self._nodes, each.node)
            ]
            if used and path not in self._folded:
                self._folded.append(path)
            self._layers[path] = layers.take_over(new, old, used)
        return self._add(
            op, **self._place(stack), args=(args[0],), shape=shape_of(node.meta["val"]),
            macs=self._macs(node), path=path,
        )  # fmt: skip

    def _holder(self, op: str, weight: Any, stack: list[str]) -> str | None:
        """Path of the module whose weights an operation takes."""
        node, inner = self._nodes[weight.node], stack[-1] if stack else ""
        name = node.path.rpartition(".")[2] if node.path else "weight"
        places = [inner]
        if node.op == "tensor" and node.path:
            if name not in ("weight", "running_mean"):
                return None
            places.append(self._names[node.path.rpartition(".")[0]])
            held = self._tensor(node.path)
            for place in places:
                if place and getattr(self._modules[place], name, None) is held:
                    return place
            return None
        # Computed weights: of a layer of this kind, which keeps them to itself.
        live = weight.node in self._live
        return (
            inner
            if inner and not live and isinstance(self._modules[inner], layers.KINDS[op])
            else None
        )

    def _stays(self, op: str, path: str, weight: Ref | None, bias: Ref | None) -> bool:
        """Whether a module is a plain layer with these very weights."""
        module: Any = self._modules[path]
        if not layers.is_plain(module, op) or type(module).__name__ == "SyncBatchNorm":
            return False
        return all(
            (None if ref is None else self._held(ref)) is own
            for ref, own in ((weight, module.weight), (bias, module.bias))
        )

    def _held(self, ref: Ref) -> Tensor | None:
        node = self._nodes[ref.node]
        return self._tensor(node.path) if node.op == "tensor" and node.path else None

    def _plain(
        self, op: str, args: list[Any], kwargs: dict[str, Any], *terms: Ref | None
    ) -> nn.Module:
        weight, bias = (None if ref is None else self._value(ref.node) for ref in terms)
        if op == "conv2d":
            names = ("stride", "padding", "dilation", "groups")
            usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            geometry = {**usual, **dict(zip(names, args[3:], strict=False)), **kwargs}
            shaped = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in geometry.items()
            }
            assert weight is not None
            return layers.make_conv2d(weight, bias, shaped)
        if op == "linear":
            assert weight is not None
            return layers.make_linear(weight, bias)
        mean, var = (self._value(ref.node) for ref in args[3:5])
        return layers.make_batch_norm(
            self._dims[args[0].node],
            weight,
            bias,
            mean,
            var,
            next(each for each in reversed(args) if isinstance(each, float)),
        )

    def _replace_layers(self) -> None:
        """Puts plain layers into the network and takes hooks off."""
        hooked = [path for path, module in self._modules.items() if layers.has_hooks(module)]
        noted = [path for path in hooked if path not in self._folded]
        for module in self._modules.values():
            layers.without_hooks(module)
        for path, layer in self._layers.items():
            self._net.set_submodule(path, layer)
        if self._folded:
            warnings.warn(
                f"weights of {_listed(self._folded)} are computed from others: they are folded to "
                "their present values, and training may move each by itself",
                stacklevel=2,
            )
        if noted:
            warnings.warn(
                f"forward hooks of {_listed(noted)} were called while the network was traced: what "
                "they change is kept, and they are not called again",
                stacklevel=2,
            )

    def _note_left_out(self) -> None:
        """Says which modules that are random in training evaluation leaves no trace of."""
        executed = {node.where for node in self._nodes}
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

    # -- the end ---------------------------------------------------------------------------------

    def _pruned(self, output: int) -> Graph:
        """The nodes that the output needs, numbered and named; literals become buffers."""
        needed = sorted({0, *_needed_by(self._nodes, output)})
        numbers = {old: new for new, old in enumerate(needed)}
        seen: Counter[str] = Counter()
        nodes = []
        for old in needed:
            node = self._nodes[old]
            path = node.path
            if old in self._literals:
                path = f"_constant_{seen['constant']}"
                seen["constant"] += 1
                self._net.register_buffer(path, self._literals[old], persistent=False)
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


def _counts(template: Any) -> bool:
    """Whether arguments depend on the number of images."""
    found: list[Batch] = []
    mapped(template, lambda each: found.append(each) if isinstance(each, Batch) else each)
    return bool(found)


def _needed_by(nodes: list[Node], output: int) -> set[int]:
    found, todo = {output}, [output]
    while todo:
        fresh = set(nodes[todo.pop()].inputs) - found
        found |= fresh
        todo += fresh
    return found


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(repr(path) if path else "the network itself" for path in paths[:3]) + more
