"""Logits of a cascade's members on CIFAR-10's test images, for the proofs about cascades."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checking import session_of
from numpy.typing import NDArray
from PIL import Image

from fracskip.checkpoint import load, load_plain
from fracskip.config import QuantConfig
from fracskip.data import load_split
from fracskip.dynamic import convert, preprocess
from fracskip.errors import CheckpointError
from fracskip.runtime import InferenceSession

Images = NDArray[np.uint8]
MEMBERS = (20, 38)  # Depths.
CALIBRATION = 2048
SEED = 0


def jpeg(quality: int) -> Callable[[Images], Images]:
    """Images saved as JPEG files and opened again."""

    def saved(images: Images) -> Images:
        opened = []
        for each in images:
            file = io.BytesIO()
            Image.fromarray(each).save(file, "JPEG", quality=quality)
            opened.append(np.asarray(Image.open(file)))
        return np.stack(opened)

    return saved


def noisy(images: Images) -> Images:
    """With Gaussian noise of a standard deviation of 8 levels."""
    noise = np.random.default_rng(SEED).normal(0, 8, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


# What is done to test images so that their distribution is another.
CHANGES: dict[str, Callable[[Images], Images]] = {
    "as they are": lambda images: images,
    "JPEG, quality 60": jpeg(60),
    "JPEG, quality 30": jpeg(30),
    "Gaussian noise": noisy,
    "darkened": lambda images: (images * 0.4).astype(np.uint8),
}


def session_for(depth: int) -> InferenceSession:
    """A plain CIFAR-10 ResNet in int8, calibrated on training images."""
    path = Path("models") / f"resnet{depth}_cifar10.safetensors"
    try:
        trained = load(path)
    except CheckpointError:  # Plain weights.
        trained = load_plain(f"resnet{depth}", path)
    image = trained.spec.image
    images = preprocess(load_split("cifar10", "train", image).images[:CALIBRATION], image)
    net = convert(
        trained.plain(),
        ["8"],
        example_input=images[:1],
        image=image,
        class_names=trained.spec.class_names,
        quant=QuantConfig(stream="int8", weights="per_option"),
        calibration=list(images.split(512)),
    )
    return session_of(net, threads=1)


def member_logits(depth: int, folder: Path = Path("build/logits")) -> dict[str, NDArray[Any]]:
    """A member's logits (10000, 10) for each of `CHANGES`, labels, MACs; kept in the folder."""
    path = folder / f"resnet{depth}.npz"
    if not path.exists():
        session = session_for(depth)
        test = load_split("cifar10", "test", session.plan.image)
        found = {"labels": test.labels, "macs": np.array(session.profile.backbone_macs)}
        for name, changed in CHANGES.items():
            found[name] = session.run(changed(test.images)).logits
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **found)
    with np.load(path) as stored:
        return dict(stored)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax of logits (B, N)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
