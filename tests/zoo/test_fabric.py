"""Two processes that share a batch learn what one does from all of it (Lightning Fabric, gloo)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from safetensors.torch import load_file, save_file
from tests.support.residual_networks import Bottleneck, Inverted, make_images, make_plain
from torch import Tensor, nn

from fracskip.config import GateConfig
from fracskip.dynamic import DynamicNetwork, convert

KINDS = {"bottleneck": Bottleneck, "inverted": Inverted}
COUNT = 8


def make_network(kind: str) -> DynamicNetwork:
    torch.manual_seed(0)
    net = convert(
        make_plain(KINDS[kind]),
        ["skip", 16, "full"],
        gate=GateConfig(width=4),
        example_input=make_images(1),
        calibration=[make_images(8)],
    )
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it draws by the process
    return net.train()


def make_decisions(net: DynamicNetwork) -> Tensor:
    """Every option in every block, but in one half of the images not in all of them."""
    decisions = (torch.arange(COUNT)[:, None] + torch.arange(len(net.blocks))) % 3
    decisions[: COUNT // 2, 0] = 2
    bars = torch.tensor([not block.can_be_skipped for block in net.blocks])
    return torch.where(bars & (decisions == 0), 1, decisions)


def gradients(net: DynamicNetwork) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def learn_half(fabric: Fabric, kind: str, path: str) -> None:
    net = make_network(kind)
    decisions, images = make_decisions(net), make_images(COUNT)
    half = COUNT // fabric.world_size
    mine = slice(fabric.global_rank * half, (fabric.global_rank + 1) * half)
    shared = fabric.setup_module(net)
    out = shared(images[mine], decisions=decisions[mine])
    loss = nn.functional.cross_entropy(out.logits, torch.arange(COUNT)[mine] % 5)
    fabric.backward(loss)
    if fabric.global_rank == 0:
        save_file(gradients(net), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_as_one(kind: str, tmp_path: Path) -> None:
    strategy = DDPStrategy(
        start_method="spawn", find_unused_parameters=True, process_group_backend="gloo"
    )
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    path = str(tmp_path / "gradients.safetensors")
    fabric.launch(learn_half, kind, path)

    net = make_network(kind)
    out = net(make_images(COUNT), decisions=make_decisions(net))
    nn.functional.cross_entropy(out.logits, torch.arange(COUNT) % 5).backward()
    alone, together = gradients(net), load_file(path)
    assert alone.keys() <= together.keys()
    for name, value in together.items():
        wanted = alone.get(name, torch.zeros_like(value))
        # A step's gradient is made of rounding errors: sums in another order round otherwise.
        atol = 1e-2 if name.endswith("activation_step") else 2e-3
        torch.testing.assert_close(value, wanted, rtol=1e-2, atol=atol)
