"""A block of any traced network, at any option.

Convolutions and linear layers of its residual branch are converted in place, and so are its
BatchNorms; each folds into the convolution before it where nothing else sees that one's output.
Everything between them is executed as the network's own code says.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fracskip.config import QuantConfig
from fracskip.dynamic.routing import RoutedBlock
from fracskip.models.graph import Step, Steps, module_of, plainly
from fracskip.models.structure import Block, is_relu, never_negative, quantisable
from fracskip.options import Option, OptionSet
from fracskip.quant.convolution import FractionalConv2d, FractionalLayer, FractionalLinear
from fracskip.quant.normalisation import FractionalBatchNorm2d, take_statistics

Arguments = list[tuple[Any, ...]]


class TracedBlock(RoutedBlock):
    """Executes one block of a traced network.

    Args:
        net: The network; the layers of the block's branch are converted in place.
        block: Where the block is in its graph.
        channels: Of what it sees.
        options: What may be chosen.
        quant: How it is quantised; the stream between blocks is float.
        onward: Nodes between this block and the next, in order.
        until: What the next block sees.

    Attributes:
        norm_of: The BatchNorms that fold into the convolution before them, by that one's path.
        skips_for_free: Whether a skipped block gives exactly what it sees.
    """

    def __init__(
        self,
        net: nn.Module,
        block: Block,
        channels: int,
        options: OptionSet,
        quant: QuantConfig,
        onward: Sequence[fx.Node],
        until: fx.Node,
    ) -> None:
        self.name, self.options, self.in_channels = block.name, options, channels
        self.can_be_skipped = block.can_be_skipped
        self.hands_on = block.can_be_skipped and block.shortcut is None
        self.norm_of: dict[str, FractionalBatchNorm2d] = {}
        self._folded: set[str] = set()
        relu = all(is_relu(net, node) for node in block.after)
        stays = self.hands_on and relu
        self.skips_for_free = stays and (not block.after or never_negative(net, block.entry))
        self._convert(net, block, quant)
        self._branch = Steps(net, block.branch, [block.entry], block.branch[-1])
        ways = block.shortcut or ()
        self._shortcut = Steps(net, ways, [block.entry], ways[-1] if ways else block.entry)
        total = block.sum or block.output
        self._after = Steps(net, block.after, [total], block.output)
        self._on = Steps(net, onward, [block.output], until)

    def _convert(self, net: nn.Module, block: Block, quant: QuantConfig) -> None:
        for node in block.branch:
            module, path = module_of(net, node), str(node.target)
            if quantisable(module):
                kind = FractionalConv2d if isinstance(module, nn.Conv2d) else FractionalLinear
                signed = not never_negative(net, node.all_input_nodes[0])
                layer = kind.of(
                    module,
                    self.options,
                    quant.scheme,
                    own_weights=quant.weights == "own",
                    signed_in=signed,
                )
                net.set_submodule(path, layer)
            elif module is not None and FractionalBatchNorm2d.converts(module):
                assert isinstance(module, nn.BatchNorm2d)
                shared = quant.scheme == "paper"
                norm = FractionalBatchNorm2d.of(module, self.options, shared)
                net.set_submodule(path, norm)
                before = node.all_input_nodes[0]
                alone = list(before.users) == [node] and before in block.branch
                if alone and isinstance(module_of(net, before), FractionalConv2d):
                    self.norm_of[str(before.target)] = norm
                    self._folded.add(path)

    # -- execution -------------------------------------------------------------------------------

    def _execute(self, x: Tensor, option: Option) -> Tensor:
        if option.is_skip:
            return self._skip(x)
        y = self._branch(x, execute=functools.partial(self._layer, option))
        return self._joined(x, y)

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self._after(y + self._shortcut(x)) if self.can_be_skipped else y
        return out

    def _skip(self, x: Tensor) -> Tensor:
        assert self.can_be_skipped, f"{self.name} has no shortcut"
        out: Tensor = x if self.skips_for_free else self._after(self._shortcut(x))
        return out

    def _onward(self, x: Tensor) -> Tensor:
        out: Tensor = self._on(x)
        return out

    def _layer(self, option: Option, step: Step, arguments: Arguments) -> list[Any]:
        module = step.module
        if option.is_full:
            # As in the plain network, to the bit.
            return plainly(step, arguments)
        if isinstance(module, FractionalLayer):
            norm = self.norm_of.get(step.target)
            terms = norm.folded(option) if norm is not None else ()
            return [module.execute(x, option, *terms) for (x,) in arguments]
        if isinstance(module, FractionalBatchNorm2d):
            return [module.finish(z) for z in self._normalised(option, step, module, arguments)]
        return plainly(step, arguments)

    def _normalised(
        self, option: Option, step: Step, norm: FractionalBatchNorm2d, arguments: Arguments
    ) -> list[Tensor]:
        if step.target in self._folded:
            return [z for (z,) in arguments]
        return [norm.normalise(z, option) for (z,) in arguments]

    # -- statistics ------------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(self, x: Tensor, option: Option, observe: bool) -> Tensor:
        """See `RoutedBlock.calibrate`."""

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, FractionalLayer):
                if observe:
                    module.observe(arguments[0][0], option)
                norm = self.norm_of.get(step.target)
                if norm is not None and norm.owns_statistics(option):
                    return [module.execute(z, option) for (z,) in arguments]
            if isinstance(module, FractionalBatchNorm2d) and module.owns_statistics(option):
                return [module.finish(module.estimate(z, option)) for (z,) in arguments]
            return self._layer(option, step, arguments)

        return self._onward(self._joined(x, self._branch(x, execute=layer)))

    def _norms(self) -> list[FractionalBatchNorm2d]:
        modules = [step.module for step in self._branch.steps]
        return [module for module in modules if isinstance(module, FractionalBatchNorm2d)]

    def finish_calibration(self, option: Option) -> None:
        """See `RoutedBlock.finish_calibration`."""
        for norm in self._norms():
            norm.finish_estimate(option)

    @torch.no_grad()
    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """See `RoutedBlock.reestimate`."""

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, FractionalLayer) and step.target in self.norm_of:
                return [module.execute(x, option) for (x,) in arguments]
            if isinstance(module, FractionalBatchNorm2d):
                for (z,) in arguments:
                    module.estimate(z, option)
                module.finish_estimate(option)
                return [module.finish(module.normalise(z, option)) for (z,) in arguments]
            return self._layer(option, step, arguments)

        self._branch.run([(group,) for group in groups if len(group)], layer)

    @torch.no_grad()
    def reestimate_shortcut(self, batches: Sequence[Tensor]) -> None:
        """See `RoutedBlock.reestimate_shortcut`."""

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                take_statistics(module, torch.cat([z for (z,) in arguments]))
            return plainly(step, arguments)

        self._shortcut.run([(x,) for x in batches], layer)
