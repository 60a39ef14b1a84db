"""Dynamic networks: blocks that execute any option, and the walk of images through them."""

from fracskip.dynamic.block import FractionalBlock
from fracskip.dynamic.convert import convert
from fracskip.dynamic.network import DynamicNetwork, Mixing, Output, build_network
from fracskip.dynamic.preprocess import preprocess

__all__ = [
    "DynamicNetwork",
    "FractionalBlock",
    "Mixing",
    "Output",
    "build_network",
    "convert",
    "preprocess",
]
