"""Randomness without hidden state: every draw follows from the seed and where it is made.

A run that is resumed at (stage, epoch, step) draws what it would have drawn, because nothing is
carried from one step to the next.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *place: int | str) -> int:
    """A 63-bit seed for a place in a run.

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """A fresh CPU generator for a place in a run."""
    return torch.Generator().manual_seed(derive_seed(seed, *place))
