"""Cost: multiply-accumulates from shapes, and what decisions cost. Knows no modules, no torch."""

from fracskip.cost.accounting import (
    CascadeCosts,
    CostReport,
    account,
    account_cascade,
    decision_entropy_bits,
    option_shares,
)
from fracskip.cost.profile import BlockProfile, NetworkProfile, conv_macs, linear_macs

__all__ = [
    "BlockProfile",
    "CascadeCosts",
    "CostReport",
    "NetworkProfile",
    "account",
    "account_cascade",
    "conv_macs",
    "decision_entropy_bits",
    "linear_macs",
    "option_shares",
]
