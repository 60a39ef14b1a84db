"""Dynamic networks: blocks that execute any option, and the walk of images through them."""

from fracskip.dynamic.block import FractionalBlock
from fracskip.dynamic.convert import convert
from fracskip.dynamic.mixing import Mixing
from fracskip.dynamic.network import DynamicNetwork, build_network
from fracskip.dynamic.preprocess import preprocess
from fracskip.dynamic.quantisation import quantize

__all__ = [
    "DynamicNetwork",
    "FractionalBlock",
    "Mixing",
    "build_network",
    "convert",
    "preprocess",
    "quantize",
]
