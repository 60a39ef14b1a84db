"""What a dynamic network estimates from images rather than learns: ranges and BatchNorm statistics.

Shapes: B images, L gated blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fracskip.dynamic.routing import Gather
from fracskip.gating import first_minimum
from fracskip.operating import offsets
from fracskip.options import Option
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import LsqQuantiser

if TYPE_CHECKING:
    from fracskip.dynamic.network import DynamicNetwork

# What batches choose in a block: of its index and what each brings to it, options (B) each.
Chooser = Callable[[int, Sequence[Tensor]], list[Tensor]]


# Every so many images of a batch are held out: what is estimated on the others is compared there.
HELD_OUT = 4


OWN, CORRECTED, COMPENSATED = "own", "corrected", "compensated"


@torch.no_grad()
def calibrate(net: DynamicNetwork, batches: Sequence[Tensor]) -> dict[str, str]:
    """Initialises every quantised option's ranges, BatchNorm statistics and offsets.

    Statistics belong to the images that training saw, augmented and of all classes: those of the
    calibration images are others, and are never taken. Each option chooses between

    - its 'own', which it holds: in a network just converted, the backbone's running_mean and
      running_var;
    - 'corrected': the plain network's, moved by what the option's rounding changes. With them the
      output of each norm has the mean and variance, per channel over all images, that it has in the
      plain network on the same images (`FractionalBatchNorm2d.estimate`). A layer without a norm
      whose offset serves this option alone gives the plain layer's means likewise
      (`FractionalLayer.estimate`): the correction of biases of Nagel et al., "Data-Free
      Quantization Through Weight Equalization and Bias Correction", ICCV 2019;
    - 'compensated', of a static network: the same after weights were rounded so that each layer's
      output changes least (`fracskip.quant.rounding`).

    It takes what brings its logits closest to the plain network's, and of those that are as close
    the first. Distance is the mean squared difference of the logits of every fourth image of each
    batch (`HELD_OUT`), the first included, on which nothing of this was estimated, while the option
    alone is executed in all blocks. Labels are not needed, and no option becomes worse by this
    measure. Each choice has ranges of its own, initialised in order of execution on the first
    batch.

    Full execution keeps what the backbone learned, and so does what an int8 stream executes at 8
    bits whatever is chosen, unless there is nothing to choose: a static network is corrected as a
    whole. Statistics that options share ('paper') are kept as well, and all are
    if a network is calibrated again whose top option is quantised: its statistics are those of the
    backbone, which may have been moved, so that the plain network is no longer there to compare
    with. Ranges are initialised anew.

    Args:
        net: The network, which is changed.
        batches: Normalised images (B, C, H, W), a thousand or two in all; the first batch as
            varied as all of them.

    Returns:
        For each quantised option's label what it took.

    Raises:
        ConfigError: if the images do not fit the network.
    """
    was_training = net.training
    net.eval()
    for images in batches:
        net.check_images(images)
    layers = [m for m in net.modules() if isinstance(m, FractionalBatchNorm2d | FractionalLayer)]
    options = [option for option in net.options if option.is_quantised]
    moves = any(_moves(layer, option) for layer in layers for option in options)
    found: _Plain | None = None
    if moves and (net.options[-1].is_full or not _is_calibrated(net)):
        found = _plain(net, layers, batches)
    net.sections.calibrate(batches)
    taken = {}
    for option in options:
        _execute(net, batches[0], option, Gather.RANGES | Gather.STEPS)
        taken[option.label] = OWN if found is None else _choose(net, found, option)
    for layer in layers:
        layer.forget()
    if net.gate is not None and net.spec.gate.standardise:
        net.gate.standardise(_pooled(net, batches))
    net.train(was_training)
    return taken


def _moves(layer: FractionalBatchNorm2d | FractionalLayer, option: Option) -> bool:
    """Whether a layer has something to estimate for an option."""
    if isinstance(layer, FractionalLayer):
        return layer.owns_bias
    return layer.owns_statistics(option)


def _is_calibrated(net: DynamicNetwork) -> bool:
    """Whether any layer's steps were initialised: before, all are 1."""
    quantisers = (module for module in net.modules() if isinstance(module, LsqQuantiser))
    return any(bool((quantiser.weight_step != 1).any()) for quantiser in quantisers)


@dataclass(frozen=True)
class _Plain:
    """What the plain network makes of calibration images.

    Attributes:
        seen: Batches to estimate on, whose moments its layers have recorded.
        held: Images held out.
        logits: The plain network's logits of each of these, (images, N).
    """

    seen: list[Tensor]
    held: list[Tensor]
    logits: list[Tensor]


def _plain(
    net: DynamicNetwork,
    layers: Sequence[FractionalBatchNorm2d | FractionalLayer],
    batches: Sequence[Tensor],
) -> _Plain:
    held = [images[::HELD_OUT] for images in batches]
    others = [torch.arange(len(images)) % HELD_OUT != 0 for images in batches]
    seen = [images[rows] for images, rows in zip(batches, others, strict=True) if rows.any()]
    plain = net.sections.plain(net.backbone)
    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(layer, FractionalBatchNorm2d):
                hooks.enter_context(layer.register_forward_pre_hook(_record_input))
            elif layer.owns_bias:
                hooks.enter_context(layer.register_forward_hook(_record_output))
        for images in seen or held:
            plain(images)
    return _Plain(seen or held, held, [plain(images) for images in held])


def _record_input(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    assert isinstance(norm, FractionalBatchNorm2d)
    norm.record(*arguments)


def _record_output(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
    assert isinstance(layer, FractionalLayer)
    layer.record(output)


def _choose(net: DynamicNetwork, plain: _Plain, option: Option) -> str:
    """Estimates an option's statistics, offsets, ranges and weights anew, and keeps the best.

    Args:
        net: The network, in whose layers the plain one's moments are recorded.
        plain: What the plain network makes of the images.
        option: The option, whose ranges are initialised.

    Returns:
        Which are kept.
    """
    own = best = _estimated(net)
    name, error = OWN, _distance(net, plain, option)
    for other in (CORRECTED, COMPENSATED) if len(net.options) == 1 else (CORRECTED,):
        _restore(net, own)
        if other == COMPENSATED:
            _execute(net, plain.seen[0], option, Gather.ROUNDING)
        _correct(net, plain, option)
        distance = _distance(net, plain, option)
        if distance < error:
            best, name, error = _estimated(net), other, distance
    _restore(net, best)
    return name


def _correct(net: DynamicNetwork, plain: _Plain, option: Option) -> None:
    """Estimates an option's statistics and offsets, and its ranges with them."""
    for position, images in enumerate(plain.seen):
        ranges = Gather.NOTHING if position else Gather.RANGES
        _execute(net, images, option, Gather.STATISTICS | ranges)
    if len(net.options) == 1:
        net.sections.finish_calibration()
    else:
        for block in net.blocks:
            block.finish_calibration(option)


def _changed(net: DynamicNetwork) -> Iterator[Tensor]:
    """What an estimate may change."""
    for module in net.modules():
        if isinstance(module, FractionalBatchNorm2d | LsqQuantiser):
            yield from module.state_dict().values()
        elif isinstance(module, FractionalLayer):
            if module.owns_bias:
                yield module.bias.data
            if module.owns_weights:
                yield module.weight.data


def _estimated(net: DynamicNetwork) -> list[Tensor]:
    return [value.clone() for value in _changed(net)]


def _restore(net: DynamicNetwork, kept: Sequence[Tensor]) -> None:
    for value, before in zip(_changed(net), kept, strict=True):
        value.copy_(before)


def _execute(net: DynamicNetwork, images: Tensor, option: Option, gather: Gather) -> None:
    """Executes an option alone for one batch; see `RoutedBlock.calibrate`."""
    if len(net.options) == 1:
        net.sections.execute_calibrating(images, gather)
        return
    x = net.begin(images)
    for block in net.blocks:
        x = block.calibrate(x, option, gather)


def _distance(net: DynamicNetwork, plain: _Plain, option: Option) -> float:
    """The sum of squared differences between an option's logits and the plain network's."""
    total = 0.0
    for images, logits in zip(plain.held, plain.logits, strict=True):
        found = net(images, decisions=net.forced(option, len(images))).logits
        total += float((found.double() - logits.double()).square().sum())
    return total


@torch.no_grad()
def reestimate(
    net: DynamicNetwork,
    batches: Sequence[Tensor],
    fewest: int = 64,
    decisions: Sequence[Tensor] | None = None,
) -> None:
    """Estimates BatchNorm statistics anew in the allocations that the gates choose.

    `calibrate` runs each option alone through the whole network. Where the gates then skip
    blocks or mix options, or weights have learned since, what a block sees is distributed
    otherwise, and its statistics are off. Here every block's are taken, in order of execution,
    from the images that execute it.
    'paper' quantisation has one set of statistics for all options, and keeps it.

    Args:
        net: The network, which is changed.
        batches: Normalised images (B, C, H, W), a thousand or two in all: they are kept in
            memory together.
        fewest: An option that fewer images take in a block keeps its statistics there.
        decisions: Option indices (B, L) of each batch, instead of asking the gate. A static
            network's are known.
    """
    if net.spec.quant.scheme == "paper":
        return
    was_training = net.training
    net.eval()
    streams = [net.begin(images) for images in batches]
    choose_in = _given(net, streams, decisions) or _asked(net, streams)
    for index, block in enumerate(net.blocks):
        block.reestimate_shortcut(streams)
        choices = choose_in(index, streams)
        for rank, option in enumerate(net.options):
            if option.is_skip or sum(int((c == rank).sum()) for c in choices) < fewest:
                continue
            taken = zip(streams, choices, strict=True)
            block.reestimate([x[choice == rank] for x, choice in taken], option)
        streams = [block.route(x, choice) for x, choice in zip(streams, choices, strict=True)]
    net.train(was_training)


def _given(
    net: DynamicNetwork, streams: Sequence[Tensor], decisions: Sequence[Tensor] | None
) -> Chooser | None:
    """Choices that are known beforehand: by the caller, or because there is one option."""
    if net.gate is None:
        decisions = [net.forced(net.options[0], len(x)) for x in streams]
    if decisions is None:
        return None
    known = [each.to(x.device) for each, x in zip(decisions, streams, strict=True)]
    return lambda index, _: [each[:, index] for each in known]


def _asked(net: DynamicNetwork, streams: Sequence[Tensor]) -> Chooser:
    """The gates' choices, block after block."""
    gate = net.gate
    assert gate is not None
    states = [gate.start(len(x), net.gate_budget(None), x) for x in streams]

    def ask(index: int, seen: Sequence[Tensor]) -> list[Tensor]:
        scores = [net.scores(index, x, state) for x, state in zip(seen, states, strict=True)]
        added = offsets(net.operating_points.multiplier, net.cost_weights[index]) + net.mask[index]
        return [first_minimum(each + added) for each in scores]

    return ask


def _pooled(net: DynamicNetwork, batches: Sequence[Tensor]) -> list[Tensor]:
    """What the gates see while every block executes the top option: (images, C) each."""
    seen: list[list[Tensor]] = [[] for _ in net.blocks]
    for images in batches:
        for x, pooled in zip(net.execute_allocation(images)[0], seen, strict=True):
            pooled.append(x.mean((2, 3)))
    return [torch.cat(pooled) for pooled in seen]
