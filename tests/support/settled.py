"""Random dynamic networks whose norms hold the statistics of what they see, as trained ones do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fracskip.dynamic import DynamicNetwork
from fracskip.quant.normalisation import FractionalBatchNorm2d


@torch.no_grad()
def settle(net: DynamicNetwork, images: Tensor) -> None:
    """Gives every norm, at every option, the statistics that the plain network has on images."""
    plain = net.plain().train()
    norms = {name: m for name, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.momentum = None  # of one batch, as they are
    plain(images)
    for name, norm in norms.items():
        own = net.backbone.get_submodule(name)
        assert isinstance(own, nn.BatchNorm2d)
        own.load_state_dict(norm.state_dict(), strict=False)
        if isinstance(own, FractionalBatchNorm2d):
            own.option_mean.copy_(own.running_mean.expand_as(own.option_mean))  # type: ignore[union-attr]
            own.option_var.copy_(own.running_var.expand_as(own.option_var))  # type: ignore[union-attr]
