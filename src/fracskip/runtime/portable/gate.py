"""The gate: pooled features to decisions, by the arithmetic of docs/bundle.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fracskip.options import HARM_SCALE
from fracskip.runtime.bundle import Bundle
from fracskip.runtime.portable.tensors import Tensors


class Gate:
    """Pooled features to option indices; holds no state between batches."""

    def __init__(self, bundle: Bundle, tensors: Tensors) -> None:
        plan = bundle.plan.gate
        assert plan is not None
        self._tensors = {name: tensors[name] for name in bundle.tensors if name.startswith("gate.")}
        self._recurrent = plan.kind == "recurrent"
        self._harm = plan.output == "harm"
        self._lean = plan.lean
        self._lean_weights = torch.tensor(bundle.plan.lean_weights)
        self._barred = bundle.plan.unskippable

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def start(
        self, budgets: Tensor | None, leans: Tensor | None
    ) -> Callable[[int, Tensor], Tensor]:
        """Begins a batch.

        Args:
            budgets: Computation shares (B,), for gates that take them.
            leans: Added to the logits times the plan's `lean_weights` (B,).

        Returns:
            A function of gated block and pooled input (B, C) that gives decisions (B,); to be
            called for each block in order.
        """
        told: Tensor | None = None
        if budgets is not None:
            scaled = (budgets.log10() / 1.5 + 1)[:, None]
            told = scaled * self._tensors["gate.budget.weight"] + self._tensors["gate.budget.bias"]
        leaning = (self._lean if leans is None else leans[:, None]) * self._lean_weights
        state: tuple[Tensor, Tensor] | None = None

        def decide(block: int, pooled: Tensor) -> Tensor:
            nonlocal state
            features = self._linear(f"gate.embed.{block}", pooled)
            if told is not None:
                features = features + told
            if self._recurrent:
                state = self._lstm(features, state)
                logits = self._linear("gate.out", state[0])
                if "gate.block_bias" in self._tensors:
                    logits = logits + self._tensors["gate.block_bias"][block]
            else:
                logits = self._linear(f"gate.out.{block}", features.relu())
            if self._harm:
                logits = -HARM_SCALE * logits.clamp_max(0).exp()
            logits = logits + leaning
            if self._barred[block]:
                logits[:, 0] = -torch.inf
            # NumPy's argmax is the first maximum; torch leaves open which one it gives.
            return torch.from_numpy(logits.numpy().argmax(1))

        return decide

    def _lstm(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        hidden, cell = state or (torch.zeros_like(x), torch.zeros_like(x))
        terms = F.linear(x, self._tensors["gate.lstm.weight_ih"], self._tensors["gate.lstm.bias"])
        terms = terms + F.linear(hidden, self._tensors["gate.lstm.weight_hh"])
        entry, forget, new, leave = terms.chunk(4, 1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell
