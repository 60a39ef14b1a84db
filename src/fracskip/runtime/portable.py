"""Executes a bundle with torch, by the arithmetic of docs/bundle.md: integers to the bit.

At every block images are grouped by decision, and each group runs once: what is not chosen is not
computed. Accumulators are sums of integers, so a floating-point convolution gives them exactly as
long as no partial sum can leave the mantissa; a bound over each layer's weights says whether
float32 will do or float64 is needed.

Levels and values are float32 tensors (B, C, H, W) in channels-last memory.
Shapes: B images, C channels, H height, W width, K options, L gated blocks, N classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fracskip.options import HARM_SCALE, Option
from fracskip.runtime.bundle import Bundle, furthest
from fracskip.runtime.plan import WIDEST_INTEGERS, ConvGeometry, StemConv

EXACT_IN_FLOAT32 = 1 << 24


class _Tensors:
    """A bundle's tensors by name."""

    def __init__(self, bundle: Bundle) -> None:
        self._arrays = bundle.tensors

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())


class _Convolution:
    """y = acc · scale + bias over integers, or a float convolution."""

    def __init__(self, tensors: _Tensors, name: str, conv: ConvGeometry) -> None:
        weight = tensors[f"{name}.weight"]
        self.is_integer = weight.dtype == torch.int8
        self._bias = tensors[f"{name}.bias"]
        self._dtype = torch.float32
        if self.is_integer:
            if furthest(weight.numpy()) >= EXACT_IN_FLOAT32:
                self._dtype = torch.float64
            self._scale = tensors[f"{name}.scale"][:, None, None]
            self._offset = self._bias[:, None, None]
        self._weight = (
            weight.to(self._dtype).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        )
        self._stride, self._padding = conv.stride, conv.padding

    def __call__(self, x: Tensor) -> Tensor:
        """Levels, or values for a float convolution, to values: (B, I, H, W) -> (B, O, H', W')."""
        if not self.is_integer:
            return F.conv2d(x, self._weight, self._bias, self._stride, self._padding)
        acc = F.conv2d(x.to(self._dtype), self._weight, None, self._stride, self._padding)
        # In place, and not as one operation: each step rounds once.
        return acc.to(torch.float32).mul_(self._scale).add_(self._offset)


def _round(y: Tensor, bits: int) -> Tensor:
    """Values in units of a grid to its levels, in place."""
    return y.round_().clamp_(0, 2**bits - 1)


class _Branch:
    """A block's residual branch at one option: the stream (B, C, H, W) -> (B, C', H', W')."""

    def __init__(
        self,
        tensors: _Tensors,
        name: str,
        geometry: tuple[ConvGeometry, ...],
        option: Option,
        step: Tensor | None,
    ) -> None:
        self._convs = [
            _Convolution(tensors, f"{name}.{position}", conv)
            for position, conv in enumerate(geometry)
        ]
        self._bits = option.bits if self._convs[0].is_integer else 0
        self._step = step
        self._inverse = tensors[f"{name}.input"] if f"{name}.input" in tensors else None

    def _entry(self, x: Tensor) -> Tensor:
        if self._bits and self._inverse is None:
            return x
        values = x if self._step is None else x * self._step
        return _round(values * self._inverse, self._bits) if self._inverse is not None else values

    def __call__(self, x: Tensor) -> Tensor:
        x = self._entry(x)
        for position, conv in enumerate(self._convs):
            if position:
                x = _round(x, self._bits) if self._bits else x.relu_()
            x = conv(x)
        return x


class _Block:
    """Every option of one residual block."""

    def __init__(self, bundle: Bundle, tensors: _Tensors, index: int, step: Tensor | None) -> None:
        plan = bundle.plan.network.blocks[index]
        name = f"blocks.{index}"
        self._integer_stream = step is not None
        self._shortcut = None
        if plan.shortcut is not None:
            self._shortcut = _Convolution(tensors, f"{name}.shortcut", plan.shortcut)
        self._branches: list[_Branch | None] = []
        for option in map(Option.parse, plan.options):
            branch = None
            if not option.is_skip:
                branch = _Branch(tensors, f"{name}.{option.label}", plan.branch, option, step)
            self._branches.append(branch)

    def execute(self, x: Tensor, option: int) -> Tensor:
        """One option for all images: (B, C, H, W) -> (B, C', H', W')."""
        branch = self._branches[option]
        if branch is None and self._shortcut is None:
            return x
        y = x if self._shortcut is None else self._shortcut(x)
        if branch is not None:
            y = branch(x).add_(y)
        return _round(y, WIDEST_INTEGERS) if self._integer_stream else y.relu_()

    def route(self, x: Tensor, choice: Tensor) -> Tensor:
        """Each image's own option, images grouped: (B, C, H, W), (B,) -> (B, C', H', W')."""
        present = np.unique(choice.numpy()).tolist()
        if len(present) == 1:
            return self.execute(x, present[0])
        out: Tensor | None = None
        for option in present:
            rows = (choice == option).nonzero().squeeze(1)
            part = self.execute(x[rows], option)
            if out is None:
                out = part.new_empty((len(x), *part.shape[1:])).contiguous(
                    memory_format=torch.channels_last
                )
            out[rows] = part
        assert out is not None
        return out


class _Gate:
    """Pooled features to option indices; holds no state between batches."""

    def __init__(self, bundle: Bundle, tensors: _Tensors) -> None:
        plan = bundle.plan.gate
        assert plan is not None
        self._tensors = {name: tensors[name] for name in bundle.tensors if name.startswith("gate.")}
        self._recurrent = plan.kind == "recurrent"
        self._harm = plan.output == "harm"
        self._lean = plan.lean
        self._lean_weights = torch.tensor(bundle.plan.lean_weights)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def start(
        self, budgets: Tensor | None, leans: Tensor | None
    ) -> Callable[[int, Tensor], Tensor]:
        """Begins a batch.

        Args:
            budgets: Computation shares (B,), for gates that take them.
            leans: Added to the logits times the plan's `lean_weights` (B,).

        Returns:
            A function of gated block and pooled input (B, C) that gives decisions (B,); to be
            called for each block in order.
        """
        told: Tensor | None = None
        if budgets is not None:
            scaled = (budgets.log10() / 1.5 + 1)[:, None]
            told = scaled * self._tensors["gate.budget.weight"] + self._tensors["gate.budget.bias"]
        leaning = (self._lean if leans is None else leans[:, None]) * self._lean_weights
        state: tuple[Tensor, Tensor] | None = None

        def decide(block: int, pooled: Tensor) -> Tensor:
            nonlocal state
            features = self._linear(f"gate.embed.{block}", pooled)
            if told is not None:
                features = features + told
            if self._recurrent:
                state = self._lstm(features, state)
                logits = self._linear("gate.out", state[0])
                if "gate.block_bias" in self._tensors:
                    logits = logits + self._tensors["gate.block_bias"][block]
            else:
                logits = self._linear(f"gate.out.{block}", features.relu())
            if self._harm:
                logits = -HARM_SCALE * logits.clamp_max(0).exp()
            logits = logits + leaning
            # NumPy's argmax is the first maximum; torch leaves open which one it gives.
            return torch.from_numpy(logits.numpy().argmax(1))

        return decide

    def _lstm(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        hidden, cell = state or (torch.zeros_like(x), torch.zeros_like(x))
        terms = F.linear(x, self._tensors["gate.lstm.weight_ih"], self._tensors["gate.lstm.bias"])
        terms = terms + F.linear(hidden, self._tensors["gate.lstm.weight_hh"])
        entry, forget, new, leave = terms.chunk(4, 1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


class PortableEngine:
    """Runs a bundle. Immutable once built; calls may come from any number of threads.

    Args:
        bundle: What to run.
        threads: Of torch, while a batch runs.
    """

    isa = "torch"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        plan = bundle.plan
        self.threads = threads
        self._plan = plan
        tensors = _Tensors(bundle)
        self._stem = [
            (op, _Convolution(tensors, f"stem.{index}", op) if isinstance(op, StemConv) else None)
            for index, op in enumerate(plan.network.stem)
        ]
        steps = tensors["stream.steps"] if plan.integer_stream else None
        self._entry_stages = (0, *plan.stages[:-1])
        self._steps = steps
        self._blocks = [
            _Block(bundle, tensors, index, None if steps is None else steps[stage])
            for index, stage in enumerate(self._entry_stages)
        ]
        self._gate = None if plan.gate is None else _Gate(bundle, tensors)
        self._head = tensors["head.weight"], tensors["head.bias"]
        # The reciprocals are rounded before they are used.
        self._mean = torch.tensor(plan.image.mean, dtype=torch.float32)
        self._inverse_std = 1 / torch.tensor(plan.image.std, dtype=torch.float32)

    def kernels(self) -> list[tuple[str, str, list[str]]]:
        """What executes each block's options: (block, option, one name a convolution)."""
        found = []
        for block in self._plan.network.blocks:
            for option in map(Option.parse, block.options):
                width = f"int{option.bits}" if option.bits <= WIDEST_INTEGERS else "float32"
                count = 0 if option.is_skip else len(block.branch)
                found.append((block.name, option.label, [f"torch_{width}"] * count))
        return found

    def run(
        self,
        images: NDArray[Any],
        logits: NDArray[np.float32],
        decisions: NDArray[np.uint8],
        latency_us: NDArray[np.float32],
        forced: NDArray[np.uint8] | None = None,
        budgets: NDArray[np.float32] | None = None,
        leans: NDArray[np.float32] | None = None,
        confidences: NDArray[np.float32] | None = None,
        second_budgets: NDArray[np.float32] | None = None,
        second_leans: NDArray[np.float32] | None = None,
        first: NDArray[np.uint8] | None = None,
        again: NDArray[np.uint8] | None = None,
    ) -> None:
        """Classifies a batch; the answers are written in place.

        Args:
            images: uint8 or normalised float32 (B, H, W, C).
            logits: (B, N).
            decisions: (B, L).
            latency_us: (B,); each image's share of the batch's time.
            forced: Option indices (B, L) to execute instead of asking the gate.
            budgets: Computation shares (B,), for gates that take them.
            leans: Added to the gates' logits times the plan's `lean_weights` (B,).
            confidences: There is a second look where the first choice's probability is smaller
                (B,); without it there is one look.
            second_budgets: As `budgets`, of the second look.
            second_leans: As `leans`, likewise.
            first: Decisions of the first look (B, L), written; with `confidences`.
            again: Whether there was a second (B,), written; likewise.
        """
        if not len(images):
            return
        begin = time.perf_counter()
        with torch.inference_mode(), _settings(self.threads):
            x = self._stream(torch.tensor(images))  # a copy: theirs may be read-only
            begun, x = self._begin(x)
            logits[:], decisions[:] = self._look(begun, x, forced, budgets, leans)
            if confidences is not None and begun < len(self._blocks):
                assert first is not None
                assert again is not None
                first[:] = decisions
                powers = np.exp(logits - logits.max(1, keepdims=True))
                again[:] = 1 / powers.sum(1) < confidences
                rows = np.flatnonzero(again)
                if len(rows):
                    told = (
                        None if each is None else each[rows]
                        for each in (second_budgets, second_leans)
                    )
                    found = self._look(begun, x[torch.from_numpy(rows)], None, *told)
                    logits[rows], decisions[rows] = found
        latency_us[:] = (time.perf_counter() - begin) * 1e6 / len(images)

    def _begin(self, x: Tensor) -> tuple[int, Tensor]:
        """The blocks before the first gated one: how many, and the stream after them."""
        count = 0
        for block, plan in zip(self._blocks, self._plan.network.blocks, strict=True):
            if plan.gated:
                break
            x = block.execute(x, 0)
            count += 1
        return count, x

    def _look(
        self,
        begun: int,
        x: Tensor,
        forced: NDArray[np.uint8] | None,
        budgets: NDArray[np.float32] | None,
        leans: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The remaining blocks and the head: logits (B, N) and decisions (B, L)."""
        decide = None
        if forced is None and self._gate is not None:
            decide = self._gate.start(
                *(None if told is None else torch.tensor(told) for told in (budgets, leans))
            )
        choices: list[NDArray[np.int64]] = []
        for index in range(begun, len(self._blocks)):
            block = self._blocks[index]
            if not self._plan.network.blocks[index].gated:
                x = block.execute(x, 0)
                continue
            gated = len(choices)
            if decide is not None:
                choice = decide(gated, self._pool(x, self._entry_stages[index]))
            elif forced is not None:
                choice = torch.from_numpy(forced[:, gated].astype(np.int64))
            else:
                choice = torch.zeros(len(x), dtype=torch.int64)
            choices.append(choice.numpy())
            x = block.route(x, choice)
        pooled = self._pool(x, self._plan.stages[-1])
        decisions = np.stack(choices, 1) if choices else np.empty((len(x), 0), np.int64)
        return F.linear(pooled, *self._head).numpy(), decisions

    def _stream(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) through the stem to the stream."""
        if pixels.dtype == torch.uint8:
            scale = torch.tensor(1 / 255, dtype=torch.float32)
            pixels = (pixels.to(torch.float32) * scale - self._mean) * self._inverse_std
        x = pixels.permute(0, 3, 1, 2)
        for op, conv in self._stem:
            if conv is not None:
                x = conv(x).relu_()
            else:
                x = F.max_pool2d(x, op.kernel, op.stride, op.padding)
        return x if self._steps is None else _round(x, WIDEST_INTEGERS)

    def _pool(self, x: Tensor, stage: int) -> Tensor:
        """Mean over height and width, in the values that the stream stands for: (B, C)."""
        if self._steps is None:
            return x.mean((2, 3))
        # A sum of integers: exact in float64, rounded once.
        total = x.sum((2, 3), dtype=torch.float64).to(torch.float32)
        return total * (self._steps[stage] / (x.shape[2] * x.shape[3]))


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """So many threads, and no Winograd: its transforms do not keep integers exact."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(before)
