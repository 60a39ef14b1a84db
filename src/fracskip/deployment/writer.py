"""What bundles are written with: tensors by name, the gate, what every plan says.

Multipliers are computed in float64 and rounded to float32 once.
Shapes: K options, W the gate's width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fracskip.dynamic import DynamicNetwork
from fracskip.gating.gate import Gate, RecurrentGate
from fracskip.runtime.elements import GatePlan

Array = NDArray[Any]


class TensorWriter:
    """Gathers a network's tensors.

    Args:
        net: The network.

    Attributes:
        tensors: What it has gathered, by name.
    """

    def __init__(self, net: DynamicNetwork) -> None:
        self.net = net
        self.tensors: dict[str, Array] = {}

    def put(self, name: str, value: Tensor) -> None:
        """Adds a tensor, int8 or float32."""
        kind = torch.int8 if value.dtype == torch.int8 else torch.float32
        self.tensors[name] = value.detach().to("cpu", kind).contiguous().numpy()

    def common(self) -> dict[str, Any]:
        """What every plan says; the gate's tensors are gathered."""
        net, spec = self.net, self.net.spec
        gate = None
        if net.gate is not None:
            # Harm is no sum of the last layer's, so its lean cannot stand in the bias.
            folded = spec.lean if spec.gate.output == "logit" else 0.0
            self._gate(net.gate, folded)
            gate = GatePlan(
                kind=spec.gate.kind,
                width=spec.gate.width,
                budget_input=spec.gate.budget_input,
                curve=tuple((cost, lean - folded) for cost, lean in spec.curve),
                cascade=spec.cascade,
                output=spec.gate.output,
                lean=spec.lean - folded,
            )
        return {
            "name": spec.model.name,
            "source": net.digest,
            "data_name": spec.data_name,
            "class_names": spec.class_names,
            "image": spec.image,
            "options": spec.options,
            "target": spec.target,
            "cost": net.profile,
            "gate": gate,
        }

    def linear(self, name: str, layer: nn.Module, offset: Tensor | float = 0.0) -> None:
        """Adds a linear layer's tensors, with an offset in its bias."""
        assert isinstance(layer, nn.Linear)
        self.put(f"{name}.weight", layer.weight)
        self.put(f"{name}.bias", layer.bias.double() + offset)

    def _gate(self, gate: Gate, folded: float) -> None:
        """The gate, with so much of a lean in its last bias."""
        weights = torch.tensor(self.net.spec.lean_weights, dtype=torch.float64)
        lean = (folded * weights).to(self.net.lean_weights.device)
        for index, layer in enumerate(gate.embed):
            self.linear(f"gate.embed.{index}", layer)
        if gate.budget_embed is not None:
            self.put("gate.budget.weight", gate.budget_embed.weight.squeeze(1))
            self.put("gate.budget.bias", gate.budget_embed.bias)
        if not isinstance(gate, RecurrentGate):
            for index, layer in enumerate(cast(nn.ModuleList, gate.out)):
                self.linear(f"gate.out.{index}", layer, lean)
            return
        self.put("gate.lstm.weight_ih", gate.lstm.weight_ih)
        self.put("gate.lstm.weight_hh", gate.lstm.weight_hh)
        self.put("gate.lstm.bias", gate.lstm.bias_ih.double() + gate.lstm.bias_hh.double())
        self.linear("gate.out", gate.out, lean)
        if gate.block_bias is not None:
            self.put("gate.block_bias", gate.block_bias)
