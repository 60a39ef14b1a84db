"""A network as torch.export sees it: ATen operations for one size of image, without mutation.

The module's own code runs once, on values that are none. What it changes in place are new values
from then on, and its dropouts stay, though evaluation mode would leave no trace of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fracskip.errors import ConfigError
from fracskip.models.graph import Batch
from fracskip.models.layers import copy_of

# Modules that give what they take in evaluation mode and something random in training.
RANDOM_NAMES = ("StochasticDepth", "DropPath", "DropBlock2d")
# Functional dropouts, which evaluation mode would leave no trace of.
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_MARK = "fracskip::only_in_training"
_LARGEST_BATCH = 4096

_ADAPTERS: dict[type[nn.Module], Callable[..., Any]] = {}


def register_adapter(kind: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Says what modules of a kind compute, in code that can be traced.

    For modules whose own `forward` cannot be, because it looks at the values that it sees. The
    adapter is called in its place while the network is traced.

    Args:
        kind: The module's exact class; the network's own class, too.
        forward: Takes the module and its inputs and calls the module's parts: what is added to a
            shortcut must be seen to be.
    """
    _ADAPTERS[kind] = forward


def forward_of(net: nn.Module) -> Callable[..., Any]:
    """What a network is called by while it is traced."""
    adapter = _ADAPTERS.get(type(net))
    return net.forward if adapter is None else functools.partial(adapter, net)


def _marked(x: Tensor, kind: str, share: float) -> Tensor:
    return torch.empty_like(x)


torch.library.define(_MARK, "(Tensor x, str kind, float share) -> Tensor")
torch.library.register_fake(_MARK, _marked)


def exported(net: nn.Module, image: tuple[int, int, int]) -> Any:
    """A network's program of ATen operations, without mutation."""
    images = torch.zeros(2, *image, device=next(iter(net.parameters()), torch.zeros(0)).device)
    # Its code runs once, on values that are none: what it keeps of them is kept by a copy.
    shadow = copy_of(net, shared=True)
    for module in shadow.modules():
        if type(module) in _ADAPTERS:
            module.forward = functools.partial(_ADAPTERS[type(module)], module)
        elif type(module).__name__ in RANDOM_NAMES:
            module.forward = _mark_identity
    count = torch.export.Dim("images", min=1, max=_LARGEST_BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                shadow, (images,), dynamic_shapes=({0: count},), strict=False
            )
            _keep_dropouts(program)
            if any(_writes_elsewhere(node) for node in program.graph.nodes):
                return program.run_decompositions({})
            _write_anew(program)
            return program
    except Exception as error:  # tracing runs the network's own code: it may raise anything
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{type(net).__name__} cannot be traced on images of shape {image} ({reason}): give an "
            "example_input of a shape that it takes; what it executes may not depend on the values "
            "or the number of images that it sees: say what its modules compute with "
            "fracskip.register_adapter"
        ) from error


def _mark_identity(x: Tensor, *_: Any, **__: Any) -> Tensor:
    found: Tensor = torch.ops.fracskip.only_in_training(x, "module", 0.0)
    return found


def _keep_dropouts(program: Any) -> None:
    """Puts marks in the place of dropouts, which decomposition would drop."""
    graph, mark = program.graph, torch.ops.fracskip.only_in_training.default
    for node in list(graph.nodes):
        name = name_of(node.target)
        kind = name.removesuffix("_")
        if kind not in _DROPOUTS or node.args[2]:
            continue
        with graph.inserting_before(node):
            new = graph.call_function(mark, (node.args[0], kind, node.args[1]))
            new.meta = dict(node.meta)
            if name != kind:
                new = graph.call_function(torch.ops.aten.copy_.default, (node.args[0], new))
                new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    program.graph_module.recompile()


def _written(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values an operation changes in place."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return []
    taken = [
        *node.args,
        *(node.kwargs.get(each.name) for each in schema.arguments[len(node.args) :]),
    ]
    return [
        value
        for value, argument in zip(taken, schema.arguments, strict=False)
        if argument.is_write and isinstance(value, fx.Node)
    ]


def _writes_elsewhere(node: fx.Node) -> bool:
    """Whether an operation may change more than one value: of which views are taken, or a buffer.

    That takes torch's own functionalisation, which costs twice the time of the export.
    """

    def views(other: fx.Node) -> bool:
        if other.op != "call_function" or _written(other):
            return False
        schema = getattr(other.target, "_schema", None)
        return schema is None or any(each.alias_info is not None for each in schema.returns)

    written = _written(node)
    return bool(written) and (
        len(written) > 1
        or _in_place(node) is None
        or written[0].name.startswith(("p_", "b_", "c_"))
        or any(views(each) for each in (written[0], *written[0].users))
    )


def _in_place(node: fx.Node) -> Any:
    """The operation that gives what one in place writes; None if there is none."""
    name, overload = name_of(node.target), node.target._overloadname  # type: ignore[union-attr]
    return getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)


def _write_anew(program: Any) -> None:
    """Makes values of operations in place new ones, which everything after them takes."""
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    for node, place in places.items():
        for value in _written(node):
            node.target = _in_place(node)
            later = [user for user in value.users if places[user] > place]
            for user in later:
                user.replace_input_with(value, node)


def name_of(target: Any) -> str:
    """An operation's name: 'add' of aten.add.Tensor; '' of what is none of torch's."""
    return target._schema.name.partition("::")[2] if hasattr(target, "_schema") else ""


def size_at(size: Any, images: int) -> int:
    """A symbolic size for so many images."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, images)))


def counted(size: Any) -> int | Batch:
    """A size as a number, or as a multiple of the number of images."""
    one, two, five = (size_at(size, images) for images in (1, 2, 5))
    if one == two == five:
        return one
    if (two, five) != (2 * one, 5 * one):
        raise ConfigError(
            f"a size of {size} depends on the number of images: what is computed of one image may "
            "not depend on the others"
        )
    return Batch(one)


def shape_of(value: Any) -> tuple[int, ...]:
    """Of a value for one image; () where it is no tensor."""
    if isinstance(value, tuple | list):  # a BatchNorm's comes with its statistics
        return shape_of(value[0]) if value and isinstance(value[0], Tensor) else ()
    return tuple(size_at(size, 1) for size in value.shape) if isinstance(value, Tensor) else ()
