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
from torch import Tensor, nn

from fracskip.config import QuantConfig
from fracskip.dynamic.routing import Gather
from fracskip.models.graph import Graph, Node
from fracskip.models.layers import take_over
from fracskip.models.padding import unpadded
from fracskip.models.steps import Step, Steps, plainly
from fracskip.models.structure import never_negative, quantisable
from fracskip.options import Option, OptionSet
from fracskip.quant.convolution import FractionalConv2d, FractionalLayer, FractionalLinear
from fracskip.quant.normalisation import FractionalBatchNorm2d, take_statistics

Arguments = list[tuple[Any, ...]]


class FractionalSteps:
    """Consecutive steps from one value to another, at any option.

    Args:
        net: The network; layers of these steps are converted in place.
        graph: Its graph.
        nodes: The steps, in order.
        entry: The value that they take.
        output: The value that they give.
        options: What they can be executed at; None leaves the layers plain, for full execution.
        quant: How they are quantised.
        levels_in: Whether what they take is an int8 stream.
    """

    def __init__(
        self,
        net: nn.Module,
        graph: Graph,
        nodes: Sequence[Node],
        entry: Node,
        output: Node,
        options: OptionSet | None,
        quant: QuantConfig,
        levels_in: bool = False,
    ) -> None:
        self._norm_of: dict[str, FractionalBatchNorm2d] = {}
        self._folded: set[str] = set()
        self._plain = options is None
        if options is not None:
            self._convert(net, graph, nodes, entry, options, quant, levels_in)
        self._steps = Steps(net, graph, nodes, [entry], output)

    def _convert(
        self,
        net: nn.Module,
        graph: Graph,
        nodes: Sequence[Node],
        entry: Node,
        options: OptionSet,
        quant: QuantConfig,
        levels_in: bool,
    ) -> None:
        for node in nodes:
            module = net.get_submodule(node.path) if node.is_layer else None
            if quantisable(node):
                assert module is not None
                kind = FractionalConv2d if node.op == "conv2d" else FractionalLinear
                taken = graph.taken(node)
                layer = kind.of(
                    module,
                    options,
                    quant.scheme,
                    # Zeros around levels of a stream are levels of it.
                    levels_in=levels_in and unpadded(graph, taken) is entry,
                    weights_per_option=quant.weights == "per_option",
                    signed_in=not never_negative(graph, taken),
                )
                net.set_submodule(node.path, take_over(layer, module))
            elif isinstance(module, nn.BatchNorm2d) and FractionalBatchNorm2d.converts(module):
                norm = FractionalBatchNorm2d.of(module, options, quant.scheme == "paper")
                net.set_submodule(node.path, take_over(norm, module))
                before = graph.taken(node)
                alone = graph.users(before) == (node,) and before in nodes
                if alone and before.is_layer and before.op == "conv2d":
                    self._norm_of[before.path] = norm
                    self._folded.add(node.path)

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
            norm = self._norm_of.get(step.path)
            terms = norm.folded(option) if norm is not None else ()
            return [module.execute(x, option, *terms) for (x,) in arguments]
        if isinstance(module, FractionalBatchNorm2d):
            return self._normalised(option, step, module, arguments)
        return plainly(step, arguments)

    def _normalised(
        self, option: Option, step: Step, norm: FractionalBatchNorm2d, arguments: Arguments
    ) -> list[Tensor]:
        if step.path in self._folded:
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
    def calibrate(self, x: Tensor, option: Option, gather: Gather) -> Tensor:
        """Executes an option for one batch; see `RoutedBlock.calibrate`."""

        def estimates(norm: FractionalBatchNorm2d | None) -> bool:
            wanted = Gather.STATISTICS in gather and norm is not None
            return wanted and norm.owns_statistics(option)  # type: ignore[union-attr]

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if isinstance(module, FractionalLayer) and option.is_quantised:
                ((z,),) = arguments
                if Gather.RANGES in gather:
                    module.observe(z, option, weights=Gather.STEPS in gather)
                if Gather.ROUNDING in gather and module.owns_weights:
                    module.compensate(z, option)
                norm = self._norm_of.get(step.path)
                if estimates(norm):
                    return [module.execute(z, option)]
                if Gather.STATISTICS in gather and norm is None and module.owns_bias:
                    return [module.estimate(z, option)]
            if isinstance(module, FractionalBatchNorm2d) and estimates(module):
                return [module.estimate(z, option) for (z,) in arguments]
            return self._layer(option, step, arguments)

        y: Tensor = self._steps(x, execute=layer)
        return y

    def finish_calibration(self, option: Option) -> None:
        """Stores the statistics gathered by `calibrate`."""
        for step in self._steps.steps:
            if isinstance(step.module, FractionalBatchNorm2d):
                step.module.finish_estimate(option)
            elif isinstance(step.module, FractionalLayer):
                step.module.finish_estimate()

    @torch.no_grad()
    def reestimate(self, groups: Sequence[Tensor], option: Option) -> None:
        """Estimates an option's BatchNorm statistics anew, each norm after the ones before it.

        Args:
            groups: What the images that execute it bring, (B, C, H, W) each; some may be empty.
            option: The option.
        """

        def layer(step: Step, arguments: Arguments) -> list[Any]:
            module = step.module
            if self._plain:
                if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                    take_statistics(module, torch.cat([z for (z,) in arguments]))
                return plainly(step, arguments)
            if isinstance(module, FractionalLayer) and step.path in self._norm_of:
                return [module.execute(x, option) for (x,) in arguments]
            if isinstance(module, FractionalBatchNorm2d):
                for (z,) in arguments:
                    module.estimate(z, option)
                module.finish_estimate(option)
                return [module.normalise(z, option) for (z,) in arguments]
            return self._layer(option, step, arguments)

        self._steps.run([(group,) for group in groups if len(group)], layer)
