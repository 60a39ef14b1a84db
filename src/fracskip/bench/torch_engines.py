"""torch as a peer: eager, and compiled by Inductor with its weights frozen in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from fracskip.bench.contender import Contender, Load, Logits, Precision
from fracskip.bench.quiet import quietly
from fracskip.bench.subject import Images, Plain, tensors_of
from fracskip.devices import computes_in_bf16
from fracskip.models.fusion import fused

BATCH = 64
Network = Callable[[Tensor], Tensor]


def precisions() -> list[Precision]:
    """What torch can do well here."""
    return ["fp32", "bf16"] if computes_in_bf16(torch.device("cpu")) else ["fp32"]


def torch_contender(
    plain: Plain, images: Images, *, compiled: bool, precision: Precision, threads: int, cores: int
) -> Contender:
    """The plain network in torch: BatchNorm folded, channels-last, inference mode.

    Args:
        plain: The network.
        images: What it classifies.
        compiled: With `torch.compile`, or eager.
        precision: 'fp32' or 'bf16'.
        threads: For one image; they must be torch's when it runs (see `torch_threads`).
        cores: Threads for throughput.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    net = fused(plain.net, plain.image)
    net = net.to(dtype=kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = tensors_of(images.floats)
    with torch_threads(threads):  # Inductor compiles the number in
        run_one = _compile(net, inputs[0].to(kind)) if compiled else net

    @torch.inference_mode(not compiled)
    @torch.no_grad()
    def run(image: Tensor) -> Logits:
        return cast(Logits, run_one(image.to(kind)).float().numpy())

    def loads() -> list[Load]:
        batch = torch.cat(inputs[:BATCH]).contiguous(memory_format=torch.channels_last).to(kind)
        with torch_threads(cores):
            run_batch = _compile(net, batch) if compiled else net

        @torch.inference_mode(not compiled)
        @torch.no_grad()
        def work() -> int:
            with torch_threads(cores):
                run_batch(batch)
            return len(batch)

        return [Load(f"batch of {len(batch)}, {cores} threads", work)]

    engine = "torch-compile" if compiled else "torch"
    return Contender(
        name=f"{engine} {precision}",
        engine=engine,
        precision=precision,
        role="backbone",
        network=plain.name,
        inputs=inputs,
        run=run,
        loads=loads,
        settings={
            "threads": threads,
            "memory": "channels-last",
            "input": "normalised floats",
            **({"inductor": "freezing"} if compiled else {"batch_norm": "folded"}),
        },
    )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch's number of threads, which is one for the whole process, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compile(net: nn.Module, example: Tensor) -> Network:
    """Compiles for inputs like the example. The threads of the moment are compiled in."""
    with quietly():
        import torch._inductor.config as inductor

        with inductor.patch(freezing=True), torch.no_grad():
            compiled = torch.compile(net, dynamic=False)
            for _ in range(3):
                compiled(example)
    return cast(Network, compiled)
