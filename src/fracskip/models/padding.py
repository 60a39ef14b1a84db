"""Zeros around images: what nodes of a graph add, and what convolutions add themselves."""

from __future__ import annotations

from torch import nn

from fracskip.models.graph import Graph, Node

Padding = tuple[int, int, int, int]
"""Rows and columns of zeros, in ONNX's order: top, left, bottom, right."""

NO_PADDING: Padding = (0, 0, 0, 0)
PADS = ("pad", "constant_pad_nd")


def fill_of(node: Node) -> float | None:
    """What a node of `PADS` adds; None where that depends on the image (reflect, replicate)."""
    if node.op == "pad" and node.argument(2, "mode", "constant") != "constant":
        return None
    return float(node.argument(3 if node.op == "pad" else 2, "value") or 0)


def zeros_around(node: Node) -> Padding | None:
    """The zeros that a node adds around each channel's image; None if it does something else."""
    if node.op not in PADS or fill_of(node) != 0 or len(node.shape) != 4:
        return None
    given = [int(each) for each in node.args[1]]
    left, right, top, bottom, *others = (*given, *[0] * (4 - len(given)))
    if any(others) or min(given) < 0:
        return None
    return top, left, bottom, right


def unpadded(graph: Graph, node: Node) -> Node:
    """The node whose value another one gives with zeros around it; by default itself."""
    while zeros_around(node) is not None:
        node = graph.taken(node)
    return node


def added(first: Padding, second: Padding) -> Padding:
    """Zeros around images that have zeros around them."""
    top, left, bottom, right = (a + b for a, b in zip(first, second, strict=True))
    return top, left, bottom, right


def padding_of(layer: nn.Conv2d) -> Padding:
    """The zeros that a convolution adds; of an odd number of 'same' most at the end, as torch."""
    if layer.padding == "valid":
        return NO_PADDING
    if layer.padding == "same":
        high, wide = (
            (kernel - 1) * dilation
            for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
        )
        return high // 2, wide // 2, high - high // 2, wide - wide // 2
    assert not isinstance(layer.padding, str)
    high, wide = layer.padding
    return high, wide, high, wide
