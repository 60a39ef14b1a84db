"""Training: its stages as one resumable run."""

from fracskip.training.fitting import fit
from fracskip.training.loop import RunInterrupted, TrainingWatcher, train

__all__ = ["RunInterrupted", "TrainingWatcher", "fit", "train"]
