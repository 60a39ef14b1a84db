"""What is measured: one engine running one network at one precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "bf16", "int8", "mixed"]
Role = Literal["dynamic", "forced", "member", "backbone", "frontier"]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Load:
    """One way to work through many images with every core.

    Attributes:
        how: The way in words.
        run: Works through the images once and returns how many they are.
    """

    how: str
    run: Callable[[], int]


@dataclass(frozen=True)
class Contender:
    """One row of the benchmark.

    Attributes:
        name: Unique in the record.
        engine: Key of the engine, such as 'onnxruntime'.
        precision: Of its arithmetic; 'mixed' where a gate decides, or members have several.
        role: 'dynamic' (decides by its gates, or a cascade at an operating point), 'forced' (the
            same network with one option in every block), 'member' (one member of the cascade by
            itself), 'backbone' (the plain network) or 'frontier' (another plain network).
        network: Which network, in words.
        inputs: One ready input an image.
        run: One input to logits (1, N); what is timed.
        loads: Ways to use all cores; made when they are needed, the best one counts.
        settings: How the engine was set up.
        tried: Other ways of setting it up that were measured and not kept, and why.
        own_latency_us: The engine's own time of its last run, where it tells one.
        option: The option that a forced network executes.
        cp: Mean computation percentage of its decisions, as a share, where there are any.
    """

    name: str
    engine: str
    precision: Precision
    role: Role
    network: str
    inputs: Sequence[Any]
    run: Callable[[Any], Logits]
    loads: Callable[[], list[Load]] = list
    settings: Mapping[str, Any] = field(default_factory=dict)
    tried: tuple[Mapping[str, Any], ...] = ()
    own_latency_us: Callable[[], float] | None = None
    option: str | None = None
    cp: Callable[[], float] | None = None
