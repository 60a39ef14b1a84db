"""A CIFAR ResNet as a bundle of version 1.

Shapes: O output channels, I input channels, kh, kw the kernel.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fracskip.deployment.writer import TensorWriter
from fracskip.dynamic.block import STREAM_OPTION
from fracskip.dynamic.folding import (
    FoldedLayer,
    folded_branch,
    folded_shortcut,
    folded_stem,
    output_stages,
    stream_steps,
)
from fracskip.options import FULL_BITS, Option
from fracskip.runtime.plan import WIDEST_INTEGERS
from fracskip.runtime.residual import BlockPlan, ConvGeometry, NetworkPlan, ResidualPlan, StemConv


class ResidualWriter(TensorWriter):
    """Gathers tensors while it walks through a network."""

    def plan(self) -> ResidualPlan:
        """See `TensorWriter.plan`."""
        net, spec = self.net, self.net.spec
        steps = stream_steps(net)
        units = [1.0] if steps is None else steps.tolist()
        if steps is not None:
            self.put("stream.steps", steps)
        stem = folded_stem(net)
        self._float("stem.0", stem, units[0])
        network = NetworkPlan(
            stem=(StemConv(**_geometry(stem.layer).model_dump()),),
            blocks=tuple(self._blocks(units)),
            classes=len(spec.class_names),
        )
        self.linear("head", net.cifar_trunk().backbone.fc)
        return ResidualPlan(stream=spec.quant.stream, network=network, **self.common())

    def _blocks(self, units: list[float]) -> list[BlockPlan]:
        """Args: units: What 1.0 is on the stream, by stage."""
        net, blocks = self.net, []
        leaves = output_stages(net)
        floating = net.stream is None
        for index, (name, _) in enumerate(net.cifar_trunk().backbone.named_blocks()):
            entry = units[leaves[index - 1]] if index and not floating else units[0]
            leaving = 1.0 if floating else units[leaves[index]]
            first = Option(FULL_BITS) if floating else STREAM_OPTION
            options = tuple(net.options) if index else (first,)
            geometry: tuple[ConvGeometry, ...] = ()
            for option in options:
                if not option.is_skip:
                    branch = folded_branch(net, index, option)
                    self._branch(f"blocks.{index}.{option.label}", branch, option, entry, leaving)
                    geometry = tuple(_geometry(folded.layer) for folded in branch)
            shortcut = folded_shortcut(net, index)
            if shortcut is not None:
                self._any(f"blocks.{index}.shortcut", shortcut, not floating, entry, leaving)
            blocks.append(
                BlockPlan(
                    name=name,
                    gated=index > 0,
                    options=tuple(option.label for option in options),
                    branch=geometry,
                    shortcut=None if shortcut is None else _geometry(shortcut.layer),
                )
            )
        return blocks

    def _branch(
        self,
        name: str,
        branch: tuple[FoldedLayer, ...],
        option: Option,
        entry: float,
        leaving: float,
    ) -> None:
        """A branch from a stream in units of `entry` to one in units of `leaving`."""
        integer = option.bits <= WIDEST_INTEGERS
        if integer and branch[0].input_step is not None:
            step = torch.tensor([branch[0].input_step], dtype=torch.float32)
            self.put(f"{name}.input", step.reciprocal())
        for position, folded in enumerate(branch):
            taken = entry if folded.input_step is None else folded.input_step
            given = leaving
            if position + 1 < len(branch):
                following = branch[position + 1].input_step
                assert not integer or following is not None
                given = following if integer and following is not None else 1.0
            self._any(f"{name}.{position}", folded, integer, taken, given)

    def _any(
        self, name: str, folded: FoldedLayer, integer: bool, taken: float, given: float
    ) -> None:
        """A convolution of levels of step `taken`, or of values, to units of `given`."""
        if not integer:
            self._float(name, folded, given)
            return
        assert folded.weight_step is not None
        self.put(f"{name}.weight", folded.weight.permute(0, 2, 3, 1))
        self.put(f"{name}.scale", folded.weight_step * folded.gain * (taken / given))
        self.put(f"{name}.bias", folded.offset / given)

    def _float(self, name: str, folded: FoldedLayer, given: float) -> None:
        """A convolution of values to units of `given`."""
        gain = folded.gain if folded.weight_step is None else folded.gain * folded.weight_step
        weight = folded.weight.double() * (gain / given)[:, None, None, None]
        self.put(f"{name}.weight", weight.permute(0, 2, 3, 1))
        self.put(f"{name}.bias", folded.offset / given)


def _geometry(conv: nn.Module) -> ConvGeometry:
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == 1
    assert not isinstance(conv.padding, str)
    return ConvGeometry(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=cast(tuple[int, int], conv.kernel_size),
        stride=cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int], conv.padding),
    )
