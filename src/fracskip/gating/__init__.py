"""Gating: features to decisions."""

from fracskip.gating.gate import FeedForwardGate, Gate, GateState, RecurrentGate, create_gate
from fracskip.gating.sampling import choose, gumbel_like, straight_through

__all__ = [
    "FeedForwardGate",
    "Gate",
    "GateState",
    "RecurrentGate",
    "choose",
    "create_gate",
    "gumbel_like",
    "straight_through",
]
