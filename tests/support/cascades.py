"""Cascades of small random networks, put together without the library's own writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from support.hostile_files import Parts
from support.random_bundle import random_bundle

SMALL: dict[str, Any] = {"image": (8, 8), "widths": (4, 8), "depth": 1}
LARGE: dict[str, Any] = {"image": (11, 10), "widths": (6,), "depth": 2, "options": ("skip", 8)}
OPERATED: dict[str, Any] = {
    "members": [{"network": 0, "temperature": 1.0}, {"network": 1, "temperature": 1.3}],
    "score": "margin",
    "averaged": True,
    "images": 1000,
    "points": [{"cost": 0.5, "chain": [0, 1], "thresholds": [0.5]}],
}


def cascade(bundles: Sequence[bytes], weights_of: Sequence[int | None] | None = None) -> Parts:
    """Bundles as one cascade, taken apart.

    Args:
        bundles: The networks.
        weights_of: Of each, which one before it shares its tensors of the same values; no one does
            if not given.
    """
    sharing = list(weights_of or [None] * len(bundles))
    networks = [Parts.of(data) for data in bundles]
    tensors: dict[str, Any] = {}
    for index, parts in enumerate(networks):
        lender = sharing[index]
        for name, tensor in parts.tensors.items():
            shared = name.endswith(".weight") and lender is not None
            if not shared or networks[lender].tensors.get(name) != tensor:
                tensors[f"{index}.{name}"] = tensor
    plan = {
        "schema": "fracskip.cascade",
        "version": 1,
        "networks": [parts.plan for parts in networks],
        "weights_of": sharing,
        **json.loads(json.dumps(OPERATED)),
    }
    return Parts(plan, tensors)


def other_size(data: bytes, size: tuple[int, int]) -> bytes:
    """The same network for images of another size."""
    parts = Parts.of(data)
    parts.plan["image"]["size"] = list(size)
    return parts.bundle()


def with_budgets(data: bytes) -> bytes:
    """The same gated network with a multiplier curve and a cascade of its own."""
    parts = Parts.of(data)
    parts.plan["operating_points"].update(
        target=0.1,
        multiplier=7.0,
        multiplier_curve=[[0.01, 40.0], [0.1, 7.0], [0.5, -9.0]],
        cascade=[[0.02, 0.01, 0.05, 0.3], [0.1, 0.02, 0.2, 0.6], [0.4, 0.1, 0.5, 0.9]],
    )
    return parts.bundle()


def random_cascade(seed: int) -> bytes:
    """Two networks, the larger one at two sizes with the same weights: three in all."""
    large = random_bundle(seed + 1, **LARGE)
    small = random_bundle(seed, **SMALL)
    return cascade([small, large, other_size(large, (9, 8))], [None, None, 1]).bundle()
