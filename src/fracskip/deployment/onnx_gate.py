"""Gates in ONNX: from a block's pooled input to the index of an option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracskip.deployment.onnx_graph import Graph
from fracskip.deployment.onnx_pieces import Arrays, linear
from fracskip.operating import offsets
from fracskip.options import SENSITIVITY_SCALE
from fracskip.runtime.plan import Plan


class GateWriter:
    """Adds the decisions of one gate, block by block, in order.

    Args:
        graph: Where to; all decisions stand in one graph, for the LSTM's state runs through them.
        plan: The bundle's plan, of a network with a gate.
        tensors: The bundle's tensors.
        budget: The input that holds the budget, (1, 1), for networks that take one.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        tensors: Arrays,
        budget: str,
    ) -> None:
        assert plan.gate is not None
        self._graph, self._tensors = graph, tensors
        self._gate, self._points, self._masks = plan.gate, plan.operating_points, plan.masks
        self._axes = graph.tensor("gate.axes", [0], np.int64)
        self._state: tuple[str, str] | None = None
        if self._gate.output == "sensitivity":
            graph.tensor("gate.most", 0)
            graph.tensor("gate.scale", SENSITIVITY_SCALE)
        # ONNX models have the same weights in all blocks.
        self._offsets = self._make_offsets(plan.cost_weights[0], budget)
        self._budget = self._embed_budget(budget) if self._gate.budget_input else None
        if self._gate.kind == "recurrent":
            for name in ("weight_ih", "weight_hh"):
                graph.tensor(f"gate.{name}", self._reordered(f"gate.lstm.{name}"))
            # ONNX has two biases; here they are summed.
            bias = self._reordered("gate.lstm.bias")
            graph.tensor("gate.bias", np.concatenate([bias, np.zeros_like(bias)], axis=1))

    def decide(self, index: int, pooled: str, name: str) -> str:
        """Adds the decision for a gated block.

        Args:
            index: Among the gated blocks.
            pooled: The mean of its input, (1, C).
            name: Of what is added.

        Returns:
            The option's index, int64 (1,).
        """
        graph = self._graph
        features = linear(graph, self._tensors, f"gate.embed.{index}", pooled, f"{name}.embed")
        if self._budget is not None:
            features = graph.node("Add", [features, self._budget], f"{name}.features")
        if self._gate.kind == "feedforward":
            hidden = graph.node("Relu", [features], f"{name}.relu")
            outputs = linear(graph, self._tensors, f"gate.out.{index}", hidden, f"{name}.outputs")
        else:
            hidden = self._lstm(features, name)
            outputs = linear(graph, self._tensors, "gate.out", hidden, f"{name}.outputs")
            own = self._tensors.get("gate.block_bias")
            if own is not None:
                bias = graph.tensor(f"{name}.own", own[index])
                outputs = graph.node("Add", [outputs, bias], f"{name}.own_outputs")
        if self._gate.output == "sensitivity":
            counted = graph.node("Min", [outputs, "gate.most"], f"{name}.counted")
            sensitivity = graph.node("Exp", [counted], f"{name}.sensitivity")
            scores = graph.node("Mul", [sensitivity, "gate.scale"], f"{name}.scores")
        else:
            scores = graph.node("Neg", [outputs], f"{name}.scores")
        if self._offsets is not None:
            scores = graph.node("Add", [scores, self._offsets], f"{name}.weighed")
        if self._masks[index].any():
            mask = np.where(self._masks[index], np.float32(np.inf), np.float32(0))
            scores = graph.node("Add", [scores, graph.tensor(f"{name}.mask", mask)], f"{name}.left")
        # The first of several minima, as everywhere.
        return graph.node("ArgMin", [scores], name, axis=1, keepdims=0, select_last_index=0)

    def _lstm(self, features: str, name: str) -> str:
        graph = self._graph
        step = graph.node("Unsqueeze", [features, self._axes], f"{name}.step")
        inputs = [step, "gate.weight_ih", "gate.weight_hh", "gate.bias"]
        if self._state is not None:  # it begins at zero
            inputs += ["", *self._state]
        self._state = (f"{name}.hidden", f"{name}.cell")
        graph.node("LSTM", inputs, f"{name}.lstm", ["", *self._state], hidden_size=self._gate.width)
        return graph.node("Squeeze", [self._state[0], self._axes], f"{name}.output")

    def _reordered(self, key: str) -> NDArray[Any]:
        """LSTM tensors from torch's order (i, f, g, o) to ONNX's (i, o, f, g), one direction."""
        i, f, g, o = np.split(self._tensors[key], 4)
        return np.concatenate([i, o, f, g])[None]

    def _make_offsets(self, weights: NDArray[np.float32], budget: str) -> str | None:
        """What is added to all scores, (1, K); None if nothing is. Weights: (K,)."""
        graph, points = self._graph, self._points
        if not points.multiplier_curve:
            fixed = offsets(np.float32(points.multiplier), weights)[None]
            return graph.tensor("gate.offsets", fixed) if points.multiplier else None
        # Linear in log cost between the curve's points: a sum of what each piece has risen by.
        costs, multipliers = np.array(points.multiplier_curve).T
        logs = np.log(costs)
        slopes = np.diff(multipliers) / np.diff(logs)
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
        first = graph.tensor("gate.curve.first", multipliers[:1, None])
        multiplier = graph.node("Add", [rise, first], "gate.multiplier")
        return graph.node(
            "Mul", [multiplier, graph.tensor("gate.weights", weights[None])], "gate.offsets"
        )

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
