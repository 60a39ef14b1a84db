"""`--model NAME --weights FILE`: a plain network where a command takes one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fracskip.cli import console
from fracskip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fracskip.dynamic import DynamicNetwork


def refuse_alone(options: argparse.Namespace) -> None:
    """Refuses options of a plain network where none is named."""
    for name in ("weights", "size"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} is of a plain network: say which with --model NAME")


def check(options: argparse.Namespace) -> None:
    """Refuses a plain network without weights.

    Raises:
        ConfigError: saying how to give them.
    """
    if options.weights is None:
        raise ConfigError(
            f"--model {options.model} is a plain network: say where its weights are with "
            "--weights FILE"
        )


def load(options: argparse.Namespace) -> DynamicNetwork:
    """The network that the words name, static, on the CPU.

    Raises:
        ConfigError: if its weights are not named.
        CheckpointError: if they do not fit.
    """
    check(options)
    from fracskip.checkpoint import load_plain, plain_image

    size = None if options.size is None else (options.size, options.size)
    image = plain_image(options.model, size)

    def note(prefix: str) -> None:
        console.remark(f"names in {options.weights} begin with {prefix!r}, which was left out")

    return load_plain(options.model, options.weights, image, on_prefix=note)


def check_count(classes: int, class_names: tuple[str, ...], data: str) -> None:
    """Holds a plain network's classes, which have no names, against a data set's.

    Raises:
        DataError: if there are not as many.
    """
    if classes != len(class_names):
        raise DataError(
            f"{data} has {len(class_names)} classes, the plain network {classes}: give a data set "
            "with as many, in the order that it was trained with"
        )
