"""A trained network as a bundle: what docs/bundle.md says, and nothing else.

Multipliers are computed in float64 and rounded to float32 once.
Shapes: O output channels, I input channels, kh, kw the kernel, K options, W the gate's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.block import STREAM_OPTION
from fracskip.dynamic.folding import (
    FoldedConvolution,
    folded_branch,
    folded_shortcut,
    folded_stem,
    output_stages,
    stream_steps,
)
from fracskip.errors import ConfigError
from fracskip.gating.gate import Gate, RecurrentGate
from fracskip.options import FULL_BITS, Option
from fracskip.runtime.bundle import write_bundle
from fracskip.runtime.plan import (
    WIDEST_INTEGERS,
    BlockPlan,
    ConvGeometry,
    GatePlan,
    NetworkPlan,
    Plan,
    StemConv,
)

Array = NDArray[Any]


def export_bundle(net: DynamicNetwork, path: str | Path) -> str:
    """Writes a network as a bundle. Returns the bundle's digest.

    Args:
        net: A network of 'modern' quantisation, or one without quantised options.
        path: Where to; by custom it ends in .fsk.

    Raises:
        ConfigError: if its quantisation has no place in a bundle.
        BundleError: if the file cannot be written.
    """
    plan, tensors = bundle_of(net)
    return write_bundle(path, plan, tensors)


@torch.no_grad()
def bundle_of(net: DynamicNetwork) -> tuple[Plan, dict[str, Array]]:
    """A network's plan and tensors.

    Raises:
        ConfigError: if its quantisation has no place in a bundle.
    """
    if net.spec.quant.scheme == "paper" and any(option.is_quantised for option in net.options):
        raise ConfigError(
            "a bundle has no zero points, and 'paper' quantisation is affine: run the checkpoint "
            "itself (fracskip eval CHECKPOINT), or train with quant.scheme = 'modern'"
        )
    writer = _Writer(net)
    return writer.plan(), writer.tensors


@dataclass
class _Writer:
    """Gathers tensors while it walks through a network."""

    net: DynamicNetwork
    tensors: dict[str, Array] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The plan; `tensors` is filled on the way."""
        net, spec = self.net, self.net.spec
        steps = stream_steps(net)
        units = [1.0] if steps is None else steps.tolist()
        if steps is not None:
            self._put("stream.steps", steps)
        stem = folded_stem(net)
        self._float("stem.0", stem, units[0])
        network = NetworkPlan(
            stem=(StemConv(**_geometry(stem.conv).model_dump()),),
            blocks=tuple(self._blocks(units)),
            classes=len(spec.class_names),
        )
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
        self._linear("head", net.cifar.backbone.fc)
        return Plan(
            name=spec.model.name,
            source=net.digest,
            data_name=spec.data_name,
            class_names=spec.class_names,
            image=spec.image,
            options=spec.options,
            stream=spec.quant.stream,
            target=spec.target,
            cost=net.profile,
            network=network,
            gate=gate,
        )

    def _put(self, name: str, value: Tensor) -> None:
        kind = torch.int8 if value.dtype == torch.int8 else torch.float32
        self.tensors[name] = value.detach().to("cpu", kind).contiguous().numpy()

    # -- convolutions -----------------------------------------------------------------------------

    def _blocks(self, units: list[float]) -> list[BlockPlan]:
        """Args: units: What 1.0 is on the stream, by stage."""
        net, blocks = self.net, []
        leaves = output_stages(net)
        floating = net.stream is None
        for index, (name, _) in enumerate(net.cifar.backbone.named_blocks()):
            entry = units[leaves[index - 1]] if index and not floating else units[0]
            leaving = 1.0 if floating else units[leaves[index]]
            first = Option(FULL_BITS) if floating else STREAM_OPTION
            options = tuple(net.options) if index else (first,)
            geometry: tuple[ConvGeometry, ...] = ()
            for option in options:
                if not option.is_skip:
                    branch = folded_branch(net, index, option)
                    self._branch(f"blocks.{index}.{option.label}", branch, option, entry, leaving)
                    geometry = tuple(_geometry(folded.conv) for folded in branch)
            shortcut = folded_shortcut(net, index)
            if shortcut is not None:
                self._any(f"blocks.{index}.shortcut", shortcut, not floating, entry, leaving)
            blocks.append(
                BlockPlan(
                    name=name,
                    gated=index > 0,
                    options=tuple(option.label for option in options),
                    branch=geometry,
                    shortcut=None if shortcut is None else _geometry(shortcut.conv),
                )
            )
        return blocks

    def _branch(
        self,
        name: str,
        branch: tuple[FoldedConvolution, ...],
        option: Option,
        entry: float,
        leaving: float,
    ) -> None:
        """A branch from a stream in units of `entry` to one in units of `leaving`."""
        integer = option.bits <= WIDEST_INTEGERS
        if integer and branch[0].input_step is not None:
            step = torch.tensor([branch[0].input_step], dtype=torch.float32)
            self._put(f"{name}.input", step.reciprocal())
        for position, folded in enumerate(branch):
            taken = entry if folded.input_step is None else folded.input_step
            given = leaving
            if position + 1 < len(branch):
                following = branch[position + 1].input_step
                assert not integer or following is not None
                given = following if integer and following is not None else 1.0
            self._any(f"{name}.{position}", folded, integer, taken, given)

    def _any(
        self, name: str, folded: FoldedConvolution, integer: bool, taken: float, given: float
    ) -> None:
        """A convolution of levels of step `taken`, or of values, to units of `given`."""
        if not integer:
            self._float(name, folded, given)
            return
        assert folded.weight_step is not None
        self._put(f"{name}.weight", folded.weight.permute(0, 2, 3, 1))
        self._put(f"{name}.scale", folded.weight_step * folded.gain * (taken / given))
        self._put(f"{name}.bias", folded.offset / given)

    def _float(self, name: str, folded: FoldedConvolution, given: float) -> None:
        """A convolution of values to units of `given`."""
        gain = folded.gain if folded.weight_step is None else folded.gain * folded.weight_step
        weight = folded.weight.double() * (gain / given)[:, None, None, None]
        self._put(f"{name}.weight", weight.permute(0, 2, 3, 1))
        self._put(f"{name}.bias", folded.offset / given)

    # -- linear layers ----------------------------------------------------------------------------

    def _linear(self, name: str, layer: nn.Module, offset: Tensor | float = 0.0) -> None:
        assert isinstance(layer, nn.Linear)
        self._put(f"{name}.weight", layer.weight)
        self._put(f"{name}.bias", layer.bias.double() + offset)

    def _gate(self, gate: Gate, folded: float) -> None:
        """The gate, with so much of a lean in its last bias."""
        weights = torch.tensor(self.net.spec.lean_weights, dtype=torch.float64)
        lean = (folded * weights).to(self.net.cifar.backbone.fc.weight.device)
        for index, layer in enumerate(gate.embed):
            self._linear(f"gate.embed.{index}", layer)
        if gate.budget_embed is not None:
            self._put("gate.budget.weight", gate.budget_embed.weight.squeeze(1))
            self._put("gate.budget.bias", gate.budget_embed.bias)
        if not isinstance(gate, RecurrentGate):
            for index, layer in enumerate(cast(nn.ModuleList, gate.out)):
                self._linear(f"gate.out.{index}", layer, lean)
            return
        self._put("gate.lstm.weight_ih", gate.lstm.weight_ih)
        self._put("gate.lstm.weight_hh", gate.lstm.weight_hh)
        self._put("gate.lstm.bias", gate.lstm.bias_ih.double() + gate.lstm.bias_hh.double())
        self._linear("gate.out", gate.out, lean)
        if gate.block_bias is not None:
            self._put("gate.block_bias", gate.block_bias)


def _geometry(conv: nn.Conv2d) -> ConvGeometry:
    assert conv.groups == 1
    assert not isinstance(conv.padding, str)
    return ConvGeometry(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=cast(tuple[int, int], conv.kernel_size),
        stride=cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int], conv.padding),
    )
