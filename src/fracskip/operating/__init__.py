"""How a network is operated, apart from what it is: operating points, the decision rule, answers.

Importing this loads no torch; what is generic over arrays takes NumPy's and torch's.
"""

from fracskip.operating.decision import cost_weights, masks, offsets
from fracskip.operating.points import (
    TAKES_NO_BUDGET,
    Cascade,
    Multiplier,
    MultiplierCurve,
    OperatingPoints,
    Operation,
    Setting,
    checked_budgets,
)
from fracskip.operating.prediction import Execution, Prediction, joined

__all__ = [
    "TAKES_NO_BUDGET",
    "Cascade",
    "Execution",
    "Multiplier",
    "MultiplierCurve",
    "OperatingPoints",
    "Operation",
    "Prediction",
    "Setting",
    "checked_budgets",
    "cost_weights",
    "joined",
    "masks",
    "offsets",
]
