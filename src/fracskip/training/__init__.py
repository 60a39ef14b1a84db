"""Training: its stages as one resumable run."""

from fracskip.training.fitting import fit
from fracskip.training.loop import train
from fracskip.training.watching import RunInterrupted, TrainingWatcher

__all__ = ["RunInterrupted", "TrainingWatcher", "fit", "train"]
