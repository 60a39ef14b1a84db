"""Steps of a traced network that can be executed at every option.

Convolutions and linear layers among them are converted in place, and so are BatchNorms; each folds
into the convolution before it where nothing else sees that one's output. Everything between them
is executed as the network's own code says.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fracskip.config import QuantConfig
from fracskip.models.graph import Step, Steps, module_of, plainly
from fracskip.models.structure import never_negative, quantisable
from fracskip.options import Option, OptionSet
from fracskip.quant.convolution import FractionalConv2d, FractionalLayer, FractionalLinear
from fracskip.quant.normalisation import FractionalBatchNorm2d

Arguments = list[tuple[Any, ...]]


class FractionalSteps:
    """Consecutive steps from one value to another, at any option.

    Args:
        net: The network; layers of these steps are converted in place.
        nodes: The steps, in order.
        entry: The value that they take.
        output: The value that they give.
        options: What they can be executed at.
        quant: How they are quantised.
        levels_in: Whether what they take is an int8 stream.
    """

    def __init__(
        self,
        net: nn.Module,
        nodes: Sequence[fx.Node],
        entry: fx.Node,
        output: fx.Node,
        options: OptionSet,
        quant: QuantConfig,
        levels_in: bool = False,
    ) -> None:
        self._norm_of: dict[str, FractionalBatchNorm2d] = {}
        self._folded: set[str] = set()
        for node in nodes:
            module, path = module_of(net, node), str(node.target)
            if quantisable(module):
                kind = FractionalConv2d if isinstance(module, nn.Conv2d) else FractionalLinear
                taken = node.all_input_nodes[0]
                layer = kind.of(
                    module,
                    options,
                    quant.scheme,
                    levels_in=levels_in and taken is entry,
                    own_weights=quant.weights == "own",
                    signed_in=not never_negative(net, taken),
                )
                net.set_submodule(path, layer)
            elif module is not None and FractionalBatchNorm2d.converts(module):
                assert isinstance(module, nn.BatchNorm2d)
                shared = quant.scheme == "paper"
                norm = FractionalBatchNorm2d.of(module, options, shared)
                net.set_submodule(path, norm)
                before = node.all_input_nodes[0]
                alone = list(before.users) == [node] and before in nodes
                if alone and isinstance(module_of(net, before), FractionalConv2d):
                    self._norm_of[str(before.target)] = norm
                    self._folded.add(path)
        self._steps = Steps(net, nodes, [entry], output)

    def __call__(self, x: Tensor, option: Option) -> Tensor:
        """Executes one option for all images: (B, C, H, W) -> (B, C', H', W')."""
        y: Tensor = self._steps(x, execute=functools.partial(self._layer, option))
        return y

    def _layer(self, option: Option, step: Step, arguments: Arguments) -> list[Any]:
        module = step.module
        if option.is_full:
            # As in the plain network, to the bit.
            return plainly(step, arguments)
        if isinstance(module, FractionalLayer):
            norm = self._norm_of.get(step.target)
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
    def observe(self, x: Tensor, option: Option) -> Tensor:
        """Initialises an option's ranges while everything is executed in full."""

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            if isinstance(step.module, FractionalLayer):
                step.module.observe(arguments[0][0], option)
            return plainly(step, arguments)

        y: Tensor = self._steps(x, execute=layer)
        return y

    @torch.no_grad()
    def calibrate(self, x: Tensor, option: Option, observe: bool, estimate: bool) -> Tensor:
        """Executes an option for one batch; see `RoutedBlock.calibrate`."""

        def estimates(norm: FractionalBatchNorm2d | None) -> bool:
            return estimate and norm is not None and norm.owns_statistics(option)

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, FractionalLayer):
                if observe:
                    module.observe(arguments[0][0], option)
                if estimates(self._norm_of.get(step.target)):
                    return [module.execute(z, option) for (z,) in arguments]
            if isinstance(module, FractionalBatchNorm2d) and estimates(module):
                return [module.finish(module.estimate(z, option)) for (z,) in arguments]
            return self._layer(option, step, arguments)

        y: Tensor = self._steps(x, execute=layer)
        return y

    def finish_calibration(self, option: Option) -> None:
        """Stores the statistics gathered by `calibrate`."""
        for step in self._steps.steps:
            if isinstance(step.module, FractionalBatchNorm2d):
                step.module.finish_estimate(option)

    @torch.no_grad()
    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """Estimates an option's BatchNorm statistics anew, each norm after the ones before it.

        Args:
            groups: What the images that execute it bring, (B, C, H, W) each; some may be empty.
            option: The option.
        """

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, FractionalLayer) and step.target in self._norm_of:
                return [module.execute(x, option) for (x,) in arguments]
            if isinstance(module, FractionalBatchNorm2d):
                for (z,) in arguments:
                    module.estimate(z, option)
                module.finish_estimate(option)
                return [module.finish(module.normalise(z, option)) for (z,) in arguments]
            return self._layer(option, step, arguments)

        self._steps.run([(group,) for group in groups if len(group)], layer)
