"""A whole training step as one CUDA graph.

On a GPU a step on one path is a thousand kernels of a few microseconds, and Python needs ten times
as long to launch them. A step that only depends on data (`dynamic.path`) is recorded once and then
launched as a whole.

All weights lie in one tensor, of which the parameters are views. A step takes the elements that its
path uses, and puts back what the optimiser makes of them: SGD as `torch.optim.SGD` does it, with
clipped gradients. Parameters without a part in the path stay as they are, momentum included, as if
their gradient were None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fracskip.dynamic.selection import ALWAYS, Piece

WARM_UP = 3  # steps before a recording, undone afterwards

Forward = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]  # values, images, path -> logits
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, images, labels -> loss


class CapturedStep:
    """Trains weights on one path a step.

    Args:
        pieces: All parameters that the optimiser has, as the forward pass takes them.
        forward: The pass.
        loss: What to minimise.
        optimiser: Plain SGD; its settings are used, and its momentum buffers filled.
        options: How many options each block has.
        blocks: Gated blocks.
        can_skip: Whether option 0 executes nothing.
        clip_norm: Largest norm of the gradient; 0 for any.
        buffers: What else a step changes: BatchNorm statistics in training mode.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        forward: Forward,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        *,
        options: int,
        blocks: int,
        can_skip: bool,
        clip_norm: float = 0.0,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self._forward, self._loss, self._clip_norm = forward, loss, clip_norm
        self._buffers = list(buffers)
        self._skips = int(can_skip)
        self._graph: torch.cuda.CUDAGraph | None = None
        parameters = [value for piece in pieces for value in piece.parameters]
        device = parameters[0].device
        groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
        if set(groups) != {id(p) for p in parameters}:
            raise AssertionError("the pieces must be the optimiser's parameters")
        self._momentum_rate = float(optimiser.param_groups[0]["momentum"])
        self._flat = torch.cat([p.detach().float().reshape(-1) for p in parameters])
        self._momentum = torch.zeros_like(self._flat)
        start = 0
        for p in parameters:
            end = start + p.numel()
            view = self._momentum[start:end].view(p.shape)
            known = optimiser.state[p].get("momentum_buffer")
            if known is not None:
                view.copy_(known)
            optimiser.state[p]["momentum_buffer"] = view
            p.data = self._flat[start:end].view(p.shape)
            start = end
        self._lay_out(pieces, groups, options, blocks, device)
        self.path = torch.zeros(blocks, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._images = self._labels = torch.empty(0)
        self._found = torch.empty(0)

    def _lay_out(
        self,
        pieces: Sequence[Piece],
        groups: dict[int, dict[str, Any]],
        options: int,
        blocks: int,
        device: torch.device,
    ) -> None:
        """Where the elements that a path takes lie, and which parameters are live on it."""
        base, stride, block_of, owner = [], [], [], []
        live: list[list[bool]] = []  # of each parameter, or of what is one of several, by option
        home: list[int] = []
        decay: list[float] = []
        self._sizes: list[int] = []
        at = 0
        for piece in pieces:
            sizes = [p.numel() for p in piece.parameters]
            taken = piece.parameters[:1] if piece.one_of else piece.parameters
            block = blocks if piece.block == ALWAYS else piece.block
            self._sizes.append(sum(p.numel() for p in taken))
            for index, p in enumerate(taken):
                base.append(torch.arange(at, at + p.numel()))
                stride.append(torch.full((p.numel(),), sizes[0] if piece.one_of else 0))
                block_of.append(torch.full((p.numel(),), block))
                owner.append(torch.full((p.numel(),), len(live)))
                rows = piece.live or ((True,) * len(taken),)
                found = [any(row) if piece.one_of else row[index] for row in rows]
                # What every path executes has one option, whatever number others have.
                live.append(found + [found[0]] * (options - len(found)))
                home.append(block)
                decay.append(float(groups[id(p)]["weight_decay"]))
                at += p.numel()
            at += sum(sizes[1:]) if piece.one_of else 0
        self._base, self._stride, self._block_of, self._owner = (
            torch.cat(parts).to(device) for parts in (base, stride, block_of, owner)
        )
        self._live, self._home = (
            torch.tensor(live, device=device),
            torch.tensor(home, device=device),
        )
        self._each = torch.arange(len(home), device=device)
        self._decay = torch.tensor(decay, device=device)[self._owner]

    def _advance(self) -> None:
        """One step, of nothing but data."""
        path = self.path
        state = torch.cat([path, path.new_zeros(1)])
        rank = (state - self._skips).clamp_min(0)
        index = self._base + self._stride * rank[self._block_of]
        live = self._live[self._each, state[self._home]][self._owner]
        weights = self._flat[index].requires_grad_()
        logits = self._forward(torch.split(weights, self._sizes), self._images, path).float()
        loss = self._loss(logits, self._images, self._labels)
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            if self._clip_norm:
                norm = torch.linalg.vector_norm(gradient)
                gradient = gradient * (self._clip_norm / (norm + 1e-6)).clamp_max(1.0)
            gradient = gradient + self._decay * weights
            before = self._momentum[index]
            speed = self._momentum_rate * before + gradient
            moved = weights - self._rate * (gradient + self._momentum_rate * speed)
            self._flat.index_copy_(0, index, torch.where(live, moved, weights))
            self._momentum.index_copy_(0, index, torch.where(live, speed, before))
            right = (logits.argmax(1) == self._labels).sum()
            self._found = torch.stack([loss.detach(), right.float()])

    def _record(self) -> torch.cuda.CUDAGraph:
        changed = [self._flat, self._momentum, *self._buffers]
        before = [value.clone() for value in changed]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        for value, old in zip(changed, before, strict=True):
            value.copy_(old)
        return graph

    def __call__(
        self, images: Tensor, labels: Tensor, path: Sequence[int], rate: float
    ) -> tuple[float, float]:
        """One step; on a CPU, without a graph.

        Args:
            images: (B, C, H, W), always as many.
            labels: (B,).
            path: Index of each gated block's option (L).
            rate: Learning rate.

        Returns:
            The loss, mean over images, and how many were right.
        """
        self.path.copy_(torch.tensor(list(path), dtype=torch.int64))
        self._rate.fill_(rate)
        if not images.is_cuda:
            self._images, self._labels = images, labels
            self._advance()
        elif self._graph is None:
            self._images, self._labels = images.clone(), labels.clone()
            self._graph = self._record()
            self._graph.replay()
        else:
            self._images.copy_(images)
            self._labels.copy_(labels)
            self._graph.replay()
        loss, right = self._found.tolist()
        return loss, right
