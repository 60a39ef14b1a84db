"""What a dynamic network estimates from images rather than learns: ranges and BatchNorm statistics.

Shapes: B images, L gated blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fracskip.gating import choose

if TYPE_CHECKING:
    from fracskip.dynamic.network import DynamicNetwork

# What batches choose in a block: of its index and what each brings to it, options (B) each.
Chooser = Callable[[int, Sequence[Tensor]], list[Tensor]]


@torch.no_grad()
def calibrate(net: DynamicNetwork, batches: Sequence[Tensor]) -> None:
    """Initialises every quantised option's ranges and BatchNorm statistics.

    Each option runs alone through the whole network. Full execution keeps what the backbone
    learned. An int8 stream comes first: its steps, then the first block.

    Args:
        net: The network, which is changed.
        batches: Normalised images (B, C, H, W), a thousand or two in all.
    """
    was_training = net.training
    net.eval()
    net.trunk.calibrate(batches)
    for option in net.options:
        if not option.is_quantised:
            continue
        for position, images in enumerate(batches):
            x = net.begin(images)
            for block in net.blocks:
                x = block.calibrate(x, option, observe=position == 0)
        for block in net.blocks:
            block.finish_calibration(option)
    if net.gate is not None and net.spec.gate.standardise:
        net.gate.standardise(_pooled(net, batches))
    net.train(was_training)


@torch.no_grad()
def reestimate(
    net: DynamicNetwork,
    batches: Sequence[Tensor],
    fewest: int = 64,
    decisions: Sequence[Tensor] | None = None,
) -> None:
    """Estimates BatchNorm statistics anew along the paths that the gates choose.

    `calibrate` runs each option alone through the whole network. Where the gates then skip
    blocks or mix options, what a block sees is distributed otherwise, and its statistics are
    off. Here every block's are taken, in order of execution, from the images that execute it.
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
        logits = [
            net.judged(index, x, state).float() for x, state in zip(seen, states, strict=True)
        ]
        return [choose(net.leaned(each, net.spec.lean)) for each in logits]

    return ask


def _pooled(net: DynamicNetwork, batches: Sequence[Tensor]) -> list[Tensor]:
    """What the gates see while every block executes the top option: (images, C) each."""
    seen: list[list[Tensor]] = [[] for _ in net.blocks]
    for images in batches:
        for x, pooled in zip(net.walk(images)[0], seen, strict=True):
            pooled.append(x.mean((2, 3)))
    return [torch.cat(pooled) for pooled in seen]
