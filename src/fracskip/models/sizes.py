"""Whether a graph is made for one size of image: found by tracing the network at another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fracskip.models.graph import Graph, Node

Size = tuple[int, int]

_HALVINGS = 63  # six, as bits


def other_sizes(size: Size) -> tuple[Size, Size]:
    """Sizes at which a network that depends on its images' size does something else.

    At the first, whatever is halved up to six times is odd where it is even at this size, and even
    where it is odd: constants of a "SAME" padding differ at every depth. The second, twice the
    size, is for networks that take multiples of something alone.

    >>> other_sizes((224, 12))
    ((225, 53), (448, 24))
    """
    high, wide = (((edge - 1) ^ _HALVINGS) + 1 for edge in size)
    grown = [
        other if other > edge else other + _HALVINGS + 1
        for other, edge in zip((high, wide), size, strict=True)
    ]
    return (grown[0], grown[1]), (2 * size[0], 2 * size[1])


def alike(graph: Graph, net: nn.Module, other: Graph, twin: nn.Module) -> bool:
    """Whether two graphs compute the same of images of any size.

    Args:
        graph: One of them.
        net: Its network, whose parameters and buffers it names.
        other: The other one.
        twin: Its network.
    """
    if (len(graph.nodes), graph.output) != (len(other.nodes), other.output):
        return False
    return all(
        _computes(one) == _computes(two)
        and (one.op != "tensor" or _same(_held(net, one.path), _held(twin, two.path)))
        for one, two in zip(graph.nodes, other.nodes, strict=True)
    )


def _computes(node: Node) -> tuple[Any, ...]:
    return node.op, node.target, node.path, node.args, node.kwargs


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors hold the same. One without memory is a parameter, whatever the size."""
    if one.is_meta or two.is_meta:
        return one.shape == two.shape
    return torch.equal(one, two)


def _held(net: nn.Module, path: str) -> torch.Tensor:
    parent, _, name = path.rpartition(".")
    found: torch.Tensor = getattr(net.get_submodule(parent), name)
    return found
