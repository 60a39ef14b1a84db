"""Where a run stands, apart from its network: sums, place, optimisers as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fracskip.training.stages import StepResult


@dataclass
class Totals:
    """Sums over an epoch so far."""

    loss: float = 0.0
    correct: float = 0.0
    images: int = 0
    cost: float | None = None
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Adds a step."""
        self.loss += result.loss
        self.correct += result.correct
        self.images += result.images
        self.seconds += seconds
        if result.cost is not None:
            self.cost = (self.cost or 0.0) + result.cost

    def means(self, measure: str = "accuracy") -> dict[str, float | None]:
        """Per image: loss, accuracy or agreement (see `Stage.measure`), cp."""
        count = max(self.images, 1)
        cp = None if self.cost is None else self.cost / count
        return {"loss": self.loss / count, measure: self.correct / count, "cp": cp}


@dataclass
class Position:
    """Where a run stands: everything that is not a tensor."""

    stage: str = "backbone"
    epoch: int = 0
    step: int = 0
    recorded: int = 0  # epochs in the record
    seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    stage_state: dict[str, Any] = field(default_factory=dict)
    operating_points: dict[str, Any] | None = None  # of a dynamic network
    notes: list[str] = field(default_factory=list)  # what went wrong so far, in sentences


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's state as named tensors; learning rates follow from the schedule."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Takes what `optimiser_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
