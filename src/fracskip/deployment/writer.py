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
from fracskip.runtime.elements import GatePlan, PlannedPoints

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
            self._gate(net.gate)
            gate = GatePlan(
                kind=spec.gate.kind,
                width=spec.gate.width,
                budget_input=spec.gate.budget_input,
                output=spec.gate.output,
            )
        return {
            "name": spec.model.name,
            "source": net.digest,
            "data_name": spec.data_name,
            "class_names": spec.class_names,
            "image": spec.image,
            "options": spec.options,
            "cost": net.profile,
            "gate": gate,
            "operating_points": PlannedPoints(**dict(net.operating_points)),
        }

    def linear(self, name: str, layer: nn.Module) -> None:
        """Adds a linear layer's tensors."""
        assert isinstance(layer, nn.Linear)
        self.put(f"{name}.weight", layer.weight)
        self.put(f"{name}.bias", layer.bias)

    def _gate(self, gate: Gate) -> None:
        for index, layer in enumerate(gate.embed):
            self.linear(f"gate.embed.{index}", layer)
        if gate.budget_embed is not None:
            self.put("gate.budget.weight", gate.budget_embed.weight.squeeze(1))
            self.put("gate.budget.bias", gate.budget_embed.bias)
        if not isinstance(gate, RecurrentGate):
            for index, layer in enumerate(cast(nn.ModuleList, gate.out)):
                self.linear(f"gate.out.{index}", layer)
            return
        self.put("gate.lstm.weight_ih", gate.lstm.weight_ih)
        self.put("gate.lstm.weight_hh", gate.lstm.weight_hh)
        self.put("gate.lstm.bias", gate.lstm.bias_ih.double() + gate.lstm.bias_hh.double())
        self.linear("gate.out", gate.out)
        if gate.block_bias is not None:
            self.put("gate.block_bias", gate.block_bias)
