"""One network of an engine: from images to logits and decisions.

Shapes: B images, C channels, H height, W width, L gated blocks, N classes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fracskip.runtime.bundle import Bundle
from fracskip.runtime.portable.gate import Gate
from fracskip.runtime.portable.network import PortableNetwork
from fracskip.runtime.portable.tensors import Tensors


class Executor:
    """A network made ready.

    Args:
        bundle: What it is.

    Attributes:
        size: Its images' height and width.
        gated: How many gated blocks it has.
        options: How many options they have.
        network: Its parts.
    """

    def __init__(self, bundle: Bundle) -> None:
        plan, tensors = bundle.plan, Tensors(bundle)
        self.size = plan.image.size
        self.gated = len(plan.gated_names)
        self.options = len(plan.option_set)
        self.network = PortableNetwork(plan, tensors)
        self._gate = None if plan.gate is None else Gate(bundle, tensors)
        # The reciprocals are rounded before they are used.
        self._mean = torch.tensor(plan.image.mean, dtype=torch.float32)
        self._inverse_std = 1 / torch.tensor(plan.image.std, dtype=torch.float32)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) to what the network takes, (B, C, H, W)."""
        if pixels.dtype == torch.uint8:
            scale = torch.tensor(1 / 255, dtype=torch.float32)
            pixels = (pixels.to(torch.float32) * scale - self._mean) * self._inverse_std
        return pixels.permute(0, 3, 1, 2)

    def begin(self, images: NDArray[Any]) -> Tensor:
        """What the first gated block sees of images (B, H, W, C)."""
        return self.network.begin(self.normalised(torch.tensor(images)))  # theirs may be read-only

    def finish(
        self,
        x: Tensor,
        forced: NDArray[np.uint8] | None = None,
        budgets: NDArray[np.float32] | None = None,
        multipliers: NDArray[np.float32] | None = None,
        gate_us: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """From there: logits (B, N) and decisions (B, L).

        Args:
            x: What the first gated block sees.
            forced: Option indices (B, L) to execute instead of asking the gate.
            budgets: Computation shares (B,), for gates that take them.
            multipliers: Of cost (B,); the plan's for all if not given.
            gate_us: What each gate took (B, L) is added to these.
        """
        decide = None
        if forced is None and self._gate is not None:
            decide = self._gate.start(
                *(None if each is None else torch.tensor(each) for each in (budgets, multipliers))
            )
        choices: list[NDArray[np.int64]] = []
        for gated in range(self.gated):
            if decide is not None:
                begin = time.perf_counter()
                choice = decide(gated, self.network.pool(gated, x))
                if gate_us is not None:
                    gate_us[:, gated] += (time.perf_counter() - begin) * 1e6 / len(x)
            elif forced is not None:
                choice = torch.from_numpy(forced[:, gated].astype(np.int64))
            else:
                choice = torch.zeros(len(x), dtype=torch.int64)
            choices.append(choice.numpy())
            x = self.network.execute(gated, x, choice)
        decisions = np.stack(choices, 1) if choices else np.empty((len(x), 0), np.int64)
        return self.network.head(x).numpy(), decisions
