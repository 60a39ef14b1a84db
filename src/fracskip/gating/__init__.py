"""Gating: features to decisions."""

from fracskip.gating.gate import FeedForwardGate, Gate, GateState, RecurrentGate, create_gate
from fracskip.gating.sampling import first_minimum, gumbel_like, straight_through

__all__ = [
    "FeedForwardGate",
    "Gate",
    "GateState",
    "RecurrentGate",
    "create_gate",
    "first_minimum",
    "gumbel_like",
    "straight_through",
]
