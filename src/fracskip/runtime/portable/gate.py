"""The gate: pooled features to scores and decisions, by the arithmetic of docs/bundle.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.operating import offsets
from fracskip.options import SENSITIVITY_SCALE
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.portable.tensors import Tensors


class Gate:
    """Pooled features to option indices; holds no state between batches."""

    def __init__(self, bundle: Bundle, tensors: Tensors) -> None:
        plan = bundle.plan.gate
        assert plan is not None
        self._tensors = {name: tensors[name] for name in bundle.tensors if name.startswith("gate.")}
        self._recurrent = plan.kind == "recurrent"
        self._gives_sensitivity = plan.output == "sensitivity"
        self._multiplier = bundle.plan.operating_points.multiplier
        self._cost_weights = torch.from_numpy(bundle.plan.cost_weights)
        self._masks = torch.from_numpy(bundle.plan.masks)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def start(
        self, budgets: Tensor | None, multipliers: Tensor | None
    ) -> Callable[[int, Tensor], Tensor]:
        """Begins a batch.

        Args:
            budgets: Computation shares (B,), for gates that take them.
            multipliers: Of cost (B,); the plan's for all if not given.

        Returns:
            A function of gated block and pooled input (B, C) that gives decisions (B,); to be
            called for each block in order.
        """
        embedded: Tensor | None = None
        if budgets is not None:
            scaled = (budgets.log10() / 1.5 + 1)[:, None]
            weight, bias = (self._tensors[f"gate.budget.{name}"] for name in ("weight", "bias"))
            embedded = scaled * weight + bias
        multiplier = self._multiplier if multipliers is None else multipliers
        state: tuple[Tensor, Tensor] | None = None

        def decide(block: int, pooled: Tensor) -> Tensor:
            nonlocal state
            features = self._linear(f"gate.embed.{block}", pooled)
            if embedded is not None:
                features = features + embedded
            if self._recurrent:
                state = self._lstm(features, state)
                outputs = self._linear("gate.out", state[0])
                if "gate.block_bias" in self._tensors:
                    outputs = outputs + self._tensors["gate.block_bias"][block]
            else:
                outputs = self._linear(f"gate.out.{block}", features.relu())
            if self._gives_sensitivity:
                scores = SENSITIVITY_SCALE * outputs.clamp_max(0).exp()
            else:
                scores = -outputs
            scores = scores + offsets(multiplier, self._cost_weights[block])
            scores = scores.masked_fill(self._masks[block], torch.inf)
            # NumPy's argmin is the first minimum; torch leaves open which one it gives.
            return torch.from_numpy(scores.numpy().argmin(1))

        return decide

    def _lstm(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        hidden, cell = state or (torch.zeros_like(x), torch.zeros_like(x))
        terms = F.linear(x, self._tensors["gate.lstm.weight_ih"], self._tensors["gate.lstm.bias"])
        terms = terms + F.linear(hidden, self._tensors["gate.lstm.weight_hh"])
        entry, forget, new, leave = terms.chunk(4, 1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell
