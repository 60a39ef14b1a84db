"""The examples' loops lead a small network to its target, and their programs run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.support.residual_networks import Bottleneck, make_images, make_plain
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fracskip

EXAMPLES = Path(__file__).parents[2] / "examples"
TARGET = 0.012
STEPS, EPOCHS = 8, 10

# Lightning's advice on workers, loggers and devices, and what it imports.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("plain_loop", "lightning_loop"):
        sys.modules.pop(name, None)


def make_loader() -> DataLoader[tuple[Tensor, ...]]:
    images = torch.cat([make_images(16, seed=seed) for seed in range(STEPS)])
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 5), batch_size=16)


def make_network(plain_loop: ModuleType) -> fracskip.DynamicNetwork:
    torch.manual_seed(0)
    net: fracskip.DynamicNetwork = plain_loop.make_dynamic(make_plain(Bottleneck), make_images(16))
    return net


def values(net: fracskip.DynamicNetwork) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def unmoved(before: dict[str, Tensor], net: fracskip.DynamicNetwork) -> list[str]:
    return [name for name, value in net.named_parameters() if torch.equal(value, before[name])]


def approaches(costs: list[float]) -> None:
    """The second half's mean cost is near the target, and the first step's was not.

    (A single epoch of eight steps scatters by more than its distance: by a third.)
    """
    half = costs[len(costs) // 2 :]
    last = sum(half) / len(half)
    assert abs(costs[0] / TARGET - 1) > 0.5
    assert abs(last / TARGET - 1) < 0.25


def test_a_plain_loop(example: Any) -> None:
    plain_loop = example("plain_loop")
    net, loader = make_network(plain_loop), make_loader()
    before = values(net)
    costs = plain_loop.train_dynamic(net, loader, TARGET, EPOCHS, gate_lr=0.02)
    approaches(costs)
    # Weights and steps of every option, norms, gates: all of it has learned.
    assert not unmoved(before, net)
    assert not net.training
    with torch.no_grad():
        assert net(make_images(16)).cost.mean() < costs[0]


def test_lightnings_trainer(example: Any, tmp_path: Path) -> None:
    plain_loop, loop = example("plain_loop"), example("lightning_loop")
    costs: list[float] = []

    class Watch(loop.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            costs.append(float(trainer.callback_metrics["cost"]))

    net, loader = make_network(plain_loop), make_loader()
    before = values(net)
    common = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    module = loop.Skipping(net, TARGET, gate_lr=0.02)
    callbacks = [Watch(), loop.Reestimate(2)]
    path = {"default_root_dir": tmp_path, "enable_model_summary": False}
    trainer = loop.lightning.Trainer(max_epochs=EPOCHS, callbacks=callbacks, **common, **path)
    trainer.fit(module, loader, loader)
    approaches(costs)
    assert not unmoved(before, net)
    assert 0 < trainer.callback_metrics["val_cost"] < costs[0]

    # The price goes with the checkpoint.
    trainer.save_checkpoint(tmp_path / "training.ckpt")
    price = module.price.integral
    assert price != 0
    again = loop.Skipping(make_network(plain_loop), TARGET)
    going_on = loop.lightning.Trainer(max_epochs=EPOCHS, **common, **path)
    going_on.fit(again, loader, ckpt_path=tmp_path / "training.ckpt", weights_only=False)
    assert again.price.integral == price
    assert all(torch.equal(value, values(net)[name]) for name, value in values(again.net).items())


@pytest.mark.parametrize("name", ["plain_loop", "lightning_loop"])
def test_the_program_runs(
    name: str,
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = example(name)
    plain_loop = example("plain_loop")
    images = plain_loop.random_images
    monkeypatch.setattr(plain_loop, "SIDE", 32)
    monkeypatch.setattr(plain_loop, "random_images", lambda count, seed: images(count // 8, seed))
    if name != "plain_loop":  # whose network is torchvision's
        monkeypatch.setattr(module, "plain_network", lambda train, classes: make_plain(Bottleneck))
    monkeypatch.chdir(tmp_path)  # where Lightning leaves its logs
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "1", "--batch", "16"])
    module.main()
    assert "validation: accuracy" in capsys.readouterr().out
