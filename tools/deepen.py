"""Grows a trained backbone deeper without changing what it computes (fracskip.models.resnet).

The result is a start for fine-tuning, not a network trained at its depth: say so wherever its
figures stand. Run from the repository's root:

    python tools/deepen.py models/resnet38_cifar10.safetensors resnet38 \
        runs/resnet74_cifar10_start.safetensors resnet74
"""

from __future__ import annotations

import argparse
import sys

import torch
from safetensors.torch import load_file, save_file

from fracskip.checkpoint import load_backbone
from fracskip.errors import FracskipError
from fracskip.models import create_model
from fracskip.models.resnet import deepen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="trained weights, plain or of a static network's checkpoint")
    parser.add_argument("model", help="their network, such as resnet38")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("deeper", help="the network to grow it to, such as resnet74")
    parser.add_argument("--seed", type=int, default=0, help="of the new convolutions")
    given = parser.parse_args()
    try:
        # A file of weights, or a static network's checkpoint.
        tensors = {
            name.removeprefix("backbone."): value for name, value in load_file(given.source).items()
        }
        shape = {
            "in_channels": tensors["conv1.weight"].shape[1],
            "num_classes": len(tensors["fc.bias"]),
        }
        net = create_model(given.model, **shape)
        load_backbone(given.source, net)
        torch.manual_seed(given.seed)
        deeper = deepen(net, create_model(given.deeper, **shape))
    except (OSError, KeyError, FracskipError) as error:
        print(f"deepen: {error}", file=sys.stderr)
        return 1
    save_file(deeper.state_dict(), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
