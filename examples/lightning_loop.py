"""Dynamic skipping with Lightning's Trainer.

    python examples/lightning_loop.py                    # random images, two minutes
    python examples/lightning_loop.py --images photos    # photos/train/CLASS/*, photos/val/CLASS/*

A dynamic network is a module like any other, so whatever the Trainer offers - precision, devices,
checkpoints, loggers, callbacks - goes with it. What a LightningModule has to add is here: the
objective, the price's state, and BatchNorm statistics at the end. Images and the plain network are
those of plain_loop.py.

Needs torchvision and lightning.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from plain_loop import Loader, make_dynamic, make_loaders, plain_network
from torch import Tensor
from torch.nn.functional import cross_entropy

import fracskip
from fracskip.dynamic import Exploration
from fracskip.training.objective import CostPrice


class Skipping(lightning.LightningModule):
    """Weights and gates of a dynamic network, trained together towards a mean cost.

    Args:
        net: The network.
        target: Share of the gated blocks' computation at 32 bits that images shall cost on average.
        lr: Of the weights.
        gate_lr: Of the gates.
        rate: How fast the price follows the error.
    """

    def __init__(
        self,
        net: fracskip.DynamicNetwork,
        target: float,
        lr: float = 1e-4,
        gate_lr: float = 3e-3,
        rate: float = 0.03,
    ) -> None:
        super().__init__()
        self.net, self.target = net, target
        self.lr, self.gate_lr = lr, gate_lr
        self.price = CostPrice(rate)
        self.draw = torch.Generator().manual_seed(0)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The task's loss and the price of what the paths cost."""
        images, labels = batch
        done = self.global_step / self.trainer.estimated_stepping_batches
        out = self.net(images, exploration=Exploration(self.draw, noise=1 - done))
        self.log("cost", out.cost.mean(), prog_bar=True)
        return cross_entropy(out.logits, labels) + self.price.penalty(out.cost, self.target)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Each image by its own path; nothing else is computed."""
        images, labels = batch
        out = self.net(images)
        accuracy = (out.logits.argmax(1) == labels).float().mean()
        self.log_dict({"val_accuracy": accuracy, "val_cost": out.cost.mean()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gates learn faster than weights that were trained before."""
        weights = [value for _, value in self.net.named_weights()]
        gates = self.net.gate.parameters()
        return torch.optim.Adam(
            [{"params": weights, "lr": self.lr}, {"params": gates, "lr": self.gate_lr}]
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The price is state too: without it a resumed training would look for it anew."""
        checkpoint["price"] = self.price.integral

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes what `on_save_checkpoint` left."""
        self.price.integral = checkpoint["price"]


class Reestimate(Callback):
    """Brings BatchNorm statistics to the paths that are taken at the end.

    Args:
        batches: How many of the training images' batches tell them.
    """

    def __init__(self, batches: int = 16) -> None:
        self.batches = batches

    def on_train_end(self, trainer: lightning.Trainer, module: Skipping) -> None:
        """See Lightning."""
        few = itertools.islice(trainer.train_dataloader, self.batches)
        module.net.reestimate([images.to(module.device) for images, _ in few])


def train_dynamic(
    net: fracskip.DynamicNetwork, train: Loader, val: Loader, target: float, **trainer: Any
) -> Skipping:
    """Trains a network; further arguments are the Trainer's."""
    module = Skipping(net, target)
    if trainer.get("devices", 1) != 1:
        # Which options a step executes differs: processes must not wait for every gradient.
        trainer.setdefault("strategy", "ddp_find_unused_parameters_true")
    fitter = lightning.Trainer(callbacks=[Reestimate()], **trainer)
    fitter.fit(module, train, val)
    return module


def main() -> None:
    """Trains, then says what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--target", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="32-true", help="such as bf16-mixed")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, val, classes = make_loaders(options.images, options.batch)
    images, _ = next(iter(train))
    net = make_dynamic(plain_network(train, classes), images)
    train_dynamic(
        net, train, val, options.target, max_epochs=options.epochs, precision=options.precision
    )
    record = fracskip.evaluate(net.cpu(), val)
    print(f"validation: accuracy {record['accuracy']:.1%} at a cost of {record['cp']:.2%}")


if __name__ == "__main__":
    main()
