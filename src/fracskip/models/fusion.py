"""Networks for inference: BatchNorms folded into the convolutions before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fracskip.config import ImageConfig
from fracskip.errors import ConfigError
from fracskip.models.graph import Graph, Node
from fracskip.models.layers import copy_of
from fracskip.models.steps import TracedNetwork
from fracskip.models.tracing import trace


def fused(net: nn.Module, image: ImageConfig) -> nn.Module:
    """A frozen copy for inference, its BatchNorms folded into the convolutions before them.

    Args:
        net: The network. One that can't be traced is copied as it is.
        image: Of its images.
    """
    twin = copy_of(net).eval().requires_grad_(False)
    if isinstance(twin, TracedNetwork):
        graph, own = twin.graph, False
    else:
        try:
            graph = trace(twin, (image.channels, *image.size))
        except ConfigError:
            return twin
        own = not graph.replaced
    for conv, norm in _pairs(graph):
        layer, statistics = twin.get_submodule(conv.path), twin.get_submodule(norm.path)
        folded = fuse_conv_bn_eval(cast(nn.Conv2d, layer), cast(nn.BatchNorm2d, statistics))
        twin.set_submodule(conv.path, folded)
        twin.set_submodule(norm.path, nn.Identity())
        own = own and (conv.where, norm.where) == (conv.path, norm.path)
    # Its own code is faster than its graph, if it calls those layers and does no more with them.
    return twin if own else TracedNetwork(twin, graph)


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Convolutions and the BatchNorms of their values, where nothing else takes part in either."""
    calls = [node.path for node in graph.data if node.is_layer]
    for norm in graph.data:
        if norm.op != "batch_norm":
            continue
        conv = graph.taken(norm)
        layers = conv.op == "conv2d" and conv.is_layer and norm.is_layer
        once = calls.count(conv.path) == calls.count(norm.path) == 1
        if layers and once and graph.users(conv) == (norm,):
            yield conv, norm
