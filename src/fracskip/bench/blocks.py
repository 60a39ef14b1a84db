"""What a network's blocks and gates take.

A block's options are told apart by differences of forced runs; gates have a clock of their own in
the engine. Needs no torch where the native engine is built. Times are of single images.

Shapes: M images, L gated blocks, P paths.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fracskip.runtime import InferenceSession
from fracskip.runtime.operations import Shape, follow
from fracskip.runtime.plan import Plan

Pixels = NDArray[np.uint8]
Path = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockShape:
    """Blocks that do the same work.

    Attributes:
        words: Channels and size, such as '16 channels at 32x32'.
        columns: Which gated blocks these are.
    """

    words: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class OptionTimes:
    """What blocks of one shape take, in microseconds above the lowest option, by option label."""

    shape: BlockShape
    lowest: str
    micros: dict[str, float]


def block_shapes(plan: Plan) -> list[BlockShape]:
    """The gated blocks of a network, grouped by what they take and give."""
    found: dict[str, list[int]] = {}
    for column, ((given, size), made) in enumerate(_shapes(plan)):
        channels = f"{given}" if given == made else f"{given} to {made}"
        found.setdefault(f"{channels} channels at {size[0]}x{size[1]}", []).append(column)
    return [BlockShape(words, tuple(columns)) for words, columns in found.items()]


def _shapes(plan: Plan) -> Iterator[tuple[Shape, int]]:
    """What each gated block takes, and the channels it gives."""
    for part, entry in zip(plan.network.parts, plan.entries, strict=True):
        if part.gated:
            yield entry, follow(part.branch, entry, part.name)[0]


def path_times(
    session: InferenceSession,
    pixels: Pixels,
    paths: Sequence[Path | None],
    rounds: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Times paths through a network, interleaved in random order.

    Args:
        session: One thread.
        pixels: (M, H, W, C).
        paths: Decisions for all images, (L,) or (M, L); None asks the gates.
        rounds: How often each path is run; one more round warms up.
        seed: Of the order.

    Returns:
        Each image's time in microseconds, (P, M): the lower quartile over the rounds, which a
        machine that is busy now and then does not move.
    """
    count = len(pixels)
    forced = [
        None
        if path is None
        else np.ascontiguousarray(np.broadcast_to(path, (count, path.shape[-1])))
        for path in paths
    ]
    times = np.zeros((rounds, len(paths), count))
    draw = random.Random(seed)
    order = list(range(len(paths)))
    for turn in range(rounds + 1):
        draw.shuffle(order)
        for index in order:
            result = session.run(pixels, decisions=forced[index])
            if turn:
                times[turn - 1, index] = result.latency_us
    return np.asarray(np.quantile(times, 0.25, axis=0))


def option_times(session: InferenceSession, pixels: Pixels, rounds: int = 9) -> list[OptionTimes]:
    """What each option takes, for each shape of block.

    All blocks of a shape take the option, all others the lowest one that they can; the difference
    to all at the lowest, shared among them.

    Args:
        session: One thread.
        pixels: A few images (M, H, W, C).
        rounds: How often each path is run.
    """
    options, blocks = session.options, len(session.plan.gated_names)
    shapes = block_shapes(session.plan)
    base = np.zeros(blocks, dtype=np.uint8)
    base[session.plan.masks[:, 0]] = 1
    paths: list[Path | None] = [base]
    for shape in shapes:
        for option in range(1, len(options)):
            path = base.copy()
            path[list(shape.columns)] = option
            paths.append(path)
    times = np.median(path_times(session, pixels, paths, rounds), axis=1)
    rows = (times[1:] - times[0]).reshape(len(shapes), len(options) - 1)
    return [
        OptionTimes(
            shape,
            options[0].label,
            {
                options[option + 1].label: float(value) / len(shape.columns)
                for option, value in enumerate(row)
            },
        )
        for shape, row in zip(shapes, rows, strict=True)
    ]


def gate_time(session: InferenceSession, pixels: Pixels, rounds: int = 9) -> float:
    """What one gate takes, in microseconds, by a clock around it inside the engine.

    Args:
        session: One thread.
        pixels: A few images (M, H, W, C).
        rounds: How often they are run.

    Returns:
        The median over the images of the lower quartile over the rounds (see `path_times`); the
        mean over blocks and members.
    """
    session.run(pixels)
    times = np.zeros((rounds, len(pixels)))
    for turn in range(rounds):
        result = session.run(pixels, time_gates=True)
        assert result.gate_us is not None  # asked for
        times[turn] = result.gate_us.sum(1) / (1 + result.escalated)
    micros = float(np.median(np.quantile(times, 0.25, axis=0)))
    return micros / max(len(session.plan.gated_names), 1)


def kernels_by_option(session: InferenceSession) -> dict[str, dict[str, int]]:
    """What executes the gated blocks: by option, kernels and the convolutions that use them."""
    gated = set(session.plan.gated_names)
    found: dict[str, dict[str, int]] = {label: {} for label in session.options.labels}
    for block, label, names in session.kernels():
        if block not in gated:
            continue
        for name in names:
            found[label][name] = found[label].get(name, 0) + 1
    return found
