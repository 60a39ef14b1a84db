"""Gates in ONNX: from a block's pooled input to the index of an option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.deployment.onnx_graph import Graph
from fracskip.deployment.onnx_pieces import Arrays, linear
from fracskip.options import HARM_SCALE
from fracskip.runtime.elements import GatePlan


class GateWriter:
    """Adds the decisions of one gate, block by block, in order.

    Args:
        graph: Where to; all decisions stand in one graph, for the LSTM's state runs through them.
        plan: The gate's plan.
        tensors: The bundle's tensors.
        lean_weights: What a lean on decisions is multiplied with, option by option.
        budget: The input that holds the budget, (1, 1), for networks that take one.
    """

    def __init__(
        self,
        graph: Graph,
        plan: GatePlan,
        tensors: Arrays,
        lean_weights: Sequence[float],
        budget: str,
    ) -> None:
        self._graph, self._plan, self._tensors = graph, plan, tensors
        self._axes = graph.tensor("gate.axes", [0], np.int64)
        self._state: tuple[str, str] | None = None
        if plan.output == "harm":
            graph.tensor("gate.most", 0)
            graph.tensor("gate.scale", -HARM_SCALE)
        self._options = len(lean_weights)
        self._lean = self._leaning(lean_weights, budget)
        self._budget = self._embed_budget(budget) if plan.budget_input else None
        if plan.kind == "recurrent":
            for name in ("weight_ih", "weight_hh"):
                graph.tensor(f"gate.{name}", self._reordered(f"gate.lstm.{name}"))
            # ONNX has two biases; here they are summed.
            bias = self._reordered("gate.lstm.bias")
            graph.tensor("gate.bias", np.concatenate([bias, np.zeros_like(bias)], axis=1))

    def decide(self, index: int, pooled: str, name: str, barred: bool = False) -> str:
        """Adds the decision for a gated block.

        Args:
            index: Among the gated blocks.
            pooled: The mean of its input, (1, C).
            name: Of what is added.
            barred: Whether the first option is no choice.

        Returns:
            The option's index, int64 (1,).
        """
        graph = self._graph
        features = linear(graph, self._tensors, f"gate.embed.{index}", pooled, f"{name}.embed")
        if self._budget is not None:
            features = graph.node("Add", [features, self._budget], f"{name}.features")
        if self._plan.kind == "feedforward":
            hidden = graph.node("Relu", [features], f"{name}.relu")
            logits = linear(graph, self._tensors, f"gate.out.{index}", hidden, f"{name}.logits")
        else:
            hidden = self._lstm(features, name)
            logits = linear(graph, self._tensors, "gate.out", hidden, f"{name}.logits")
            own = self._tensors.get("gate.block_bias")
            if own is not None:
                bias = graph.tensor(f"{name}.own", own[index])
                logits = graph.node("Add", [logits, bias], f"{name}.own_logits")
        if self._plan.output == "harm":
            counted = graph.node("Min", [logits, "gate.most"], f"{name}.counted")
            harm = graph.node("Exp", [counted], f"{name}.harm")
            logits = graph.node("Mul", [harm, "gate.scale"], f"{name}.worth")
        if self._lean is not None:
            logits = graph.node("Add", [logits, self._lean], f"{name}.leaned")
        if barred:
            bars = np.zeros(self._options, np.float32)
            bars[0] = -np.inf
            logits = graph.node("Add", [logits, graph.tensor(f"{name}.bars", bars)], f"{name}.left")
        # The first of several maxima, as everywhere.
        return graph.node("ArgMax", [logits], name, axis=1, keepdims=0, select_last_index=0)

    def _lstm(self, features: str, name: str) -> str:
        graph = self._graph
        step = graph.node("Unsqueeze", [features, self._axes], f"{name}.step")
        inputs = [step, "gate.weight_ih", "gate.weight_hh", "gate.bias"]
        if self._state is not None:  # it begins at zero
            inputs += ["", *self._state]
        self._state = (f"{name}.hidden", f"{name}.cell")
        graph.node("LSTM", inputs, f"{name}.lstm", ["", *self._state], hidden_size=self._plan.width)
        return graph.node("Squeeze", [self._state[0], self._axes], f"{name}.output")

    def _reordered(self, key: str) -> NDArray[Any]:
        """LSTM tensors from torch's order (i, f, g, o) to ONNX's (i, o, f, g), one direction."""
        i, f, g, o = np.split(self._tensors[key], 4)
        return np.concatenate([i, o, f, g])[None]

    def _leaning(self, lean_weights: Sequence[float], budget: str) -> str | None:
        """What is added to all logits, (1, K); None if nothing is."""
        graph, plan = self._graph, self._plan
        weights = np.asarray(lean_weights, dtype=np.float32)[None]
        if not plan.curve:
            return graph.tensor("gate.lean", plan.lean * weights) if plan.lean else None
        # Linear in log cost between the curve's points: a sum of what each piece has risen by.
        costs, leans = np.array(plan.curve).T
        logs = np.log(costs)
        slopes = np.diff(leans) / np.diff(logs)
        low, high = (
            graph.tensor(f"gate.curve.{at}", part[None])
            for at, part in zip(("low", "high"), (logs[:-1], logs[1:]), strict=True)
        )
        log = graph.node("Log", [budget], "gate.curve.log")
        above = graph.node("Max", [log, low], "gate.curve.above")
        inside = graph.node("Min", [above, high], "gate.curve.inside")
        gone = graph.node("Sub", [inside, low], "gate.curve.gone")
        rise = graph.node(
            "MatMul", [gone, graph.tensor("gate.curve.slopes", slopes[:, None])], "gate.curve.rise"
        )
        first = graph.tensor("gate.curve.first", leans[:1, None])
        lean = graph.node("Add", [rise, first], "gate.curve.lean")
        return graph.node("Mul", [lean, graph.tensor("gate.lean", weights)], "gate.leaning")

    def _embed_budget(self, budget: str) -> str:
        graph = self._graph
        log = graph.node("Log", [budget], "gate.budget.log")
        factor = graph.tensor("gate.budget.factor", 1 / (1.5 * math.log(10)))
        scaled = graph.node("Mul", [log, factor], "gate.budget.scaled")
        centred = graph.node("Add", [scaled, graph.tensor("gate.budget.one", 1)], "gate.budget.in")
        weight = graph.tensor("gate.budget.weight", self._tensors["gate.budget.weight"][None])
        product = graph.node("MatMul", [centred, weight], "gate.budget.product")
        bias = graph.tensor("gate.budget.bias", self._tensors["gate.budget.bias"])
        return graph.node("Add", [product, bias], "gate.budget")
