"""A network's state with the weights that are only ever quantised held as their integers.

An int8 takes a quarter of a float32's room, and where each option has weights of its own, a file
holds hardly anything else. What is executed stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fracskip.dynamic.network import DynamicNetwork
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.quantisers import SMALLEST_STEP, LsqQuantiser


def pack(net: DynamicNetwork) -> dict[str, Tensor]:
    """The network's state; weights that serve one option of at most 8 bits alone as int8."""
    state = dict(net.state_dict())
    for name, quantiser, slot, _ in _packable(net):
        state[name], _ = quantiser.integers(state[name], slot)
    return state


def unpack(net: DynamicNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state as the network takes it: integers times their steps; everything else as it is.

    Args:
        net: A network of the same kind; it stays as it is.
        tensors: From `pack`, or a plain state.
    """
    state = dict(tensors)
    for name, _, slot, steps in _packable(net):
        held, learned = tensors.get(name), tensors.get(steps)
        if held is None or learned is None or held.dtype != torch.int8:
            continue
        # A file of another shape is refused where all shapes are checked.
        if learned.dim() == 2 and slot < len(learned) and learned.shape[1:] == held.shape[:1]:
            step = learned[slot].clamp_min(SMALLEST_STEP)
            state[name] = held.float() * step[:, None, None, None]
    return state


def _packable(net: DynamicNetwork) -> Iterator[tuple[str, LsqQuantiser, int, str]]:
    """Of each weight to pack: its name, its quantiser and slot, and the name of its steps."""
    for path, module in net.named_modules():
        if isinstance(module, FractionalConv2d):
            for name, slot in module.packable().items():
                assert isinstance(module.quantiser, LsqQuantiser)
                steps = f"{path}.quantiser.weight_step"
                yield f"{path}.{name}", module.quantiser, slot, steps
