"""Dynamic networks: blocks that execute any option, and the forward pass of images through them."""

from fracskip.dynamic.block import FractionalBlock
from fracskip.dynamic.convert import convert
from fracskip.dynamic.exploration import Exploration
from fracskip.dynamic.network import DynamicNetwork, build_network
from fracskip.dynamic.preprocess import preprocess
from fracskip.dynamic.quantisation import quantize

__all__ = [
    "DynamicNetwork",
    "Exploration",
    "FractionalBlock",
    "build_network",
    "convert",
    "preprocess",
    "quantize",
]
