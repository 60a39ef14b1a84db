"""What a network does on a data set: predictions, and records of accuracy and cost.

Importing this loads no torch: an exported network is evaluated without it.
"""

from fracskip.evaluation.predictions import predict
from fracskip.evaluation.predictor import ModelInfo, Predictor, predictor_of
from fracskip.evaluation.record import SCHEMA, evaluate
from fracskip.evaluation.sweep import sweep
from fracskip.evaluation.thresholds import cascade

__all__ = [
    "SCHEMA",
    "ModelInfo",
    "Predictor",
    "cascade",
    "evaluate",
    "predict",
    "predictor_of",
    "sweep",
]
