"""Checkpoints: one safetensors file whose header says, in JSON, what network it holds."""

from fracskip.checkpoint.networks import load, save
from fracskip.checkpoint.package import (
    BUNDLED,
    SCHEMA,
    Package,
    read_package,
    resolve,
    write_package,
)
from fracskip.checkpoint.plain import load_backbone, load_plain, plain_image

__all__ = [
    "BUNDLED",
    "SCHEMA",
    "Package",
    "load",
    "load_backbone",
    "load_plain",
    "plain_image",
    "read_package",
    "resolve",
    "save",
    "write_package",
]
