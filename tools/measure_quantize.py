"""How close post-training quantisation comes to the float network, beside NNCF's int8.

    python tools/measure_quantize.py cifar --json results/quantize_cifar.json
    python tools/measure_quantize.py lite --photos FOLDER --json results/quantize_lite.json
    python tools/measure_quantize.py zoo --json results/quantize_zoo.json

`cifar`: the CIFAR ResNets of models/ on the 10,000 test images. `lite`: EfficientNet-Lite at
several sizes (weights: tools/lite_networks.py) on photographs of ImageNet classes,
FOLDER/train/CLASS and FOLDER/val/CLASS. `zoo`: networks of torchvision with random weights, whose
logits alone are compared. Calibration images are training images, drawn once; what is chosen is
chosen on them alone, and test images are read once for each configuration, by the native engine.
NNCF quantises the same network from the same images, where it is installed with OpenVINO.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import fracskip
from fracskip.config import IMAGENET_MEAN, IMAGENET_STD, ImageConfig
from fracskip.data import load_split
from fracskip.errors import CheckpointError
from fracskip.machine import cores, describe_processor, versions

CALIBRATION, SEED = 256, 0
DEPTHS = (8, 14, 20, 38, 74)
LITE = ((0, 192), (0, 224), (1, 240), (2, 224))
CLASSES = {
    "tench": 0, "english_springer": 217, "cassette_player": 482, "chain_saw": 491, "church": 497,
}  # fmt: skip
ZOO = ("resnet50", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf", "convnext_tiny")


@dataclass(frozen=True)
class Case:
    """A trained network and its images.

    Attributes:
        name: Its name.
        net: The module.
        image: Size and normalisation.
        calibration: uint8 (256, H, W, 3), of training images.
        test: uint8 (N, H, W, 3).
        labels: (N,); None where weights are random.
        bits: Of residual blocks.
    """

    name: str
    net: nn.Module
    image: ImageConfig
    calibration: NDArray[np.uint8]
    test: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    bits: tuple[int, ...] = (8, 6)


def drawn(count: int, wanted: int = CALIBRATION) -> NDArray[np.int64]:
    return np.sort(np.random.RandomState(SEED).permutation(count)[:wanted])


def cifar_cases(_: argparse.Namespace) -> Iterator[Case]:
    for depth in DEPTHS:
        path = f"models/resnet{depth}_cifar10.safetensors"
        try:
            net = fracskip.load(path)
        except CheckpointError:
            net = fracskip.checkpoint.load_plain(f"resnet{depth}", path)
        train, test = (load_split("cifar10", split, net.spec.image) for split in ("train", "test"))
        rows = drawn(len(train))
        yield Case(
            f"resnet{depth}", net.plain(), net.spec.image, train.images[rows], test.images,
            test.labels,
        )  # fmt: skip


def photographs(folder: Path, split: str, size: int) -> tuple[Any, Any]:
    """Bicubic, the shorter side to size / 0.875, the centre."""
    files = [
        (p, i) for name, i in CLASSES.items() for p in sorted((folder / split / name).iterdir())
    ]
    if split == "train":
        files = [files[row] for row in drawn(len(files))]
    images = []
    for path, _ in files:
        picture = Image.open(path).convert("RGB")
        scale = int(size / 0.875) / min(picture.size)
        wide, high = (round(side * scale) for side in picture.size)
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        images.append(np.asarray(picture.crop((left, top, left + size, top + size))))
    return np.stack(images), np.array([index for _, index in files])


def lite_cases(options: argparse.Namespace) -> Iterator[Case]:
    import timm
    from safetensors.torch import load_file

    for number, size in LITE:
        name = f"tf_efficientnet_lite{number}"
        net = timm.create_model(name)
        net.load_state_dict(load_file(f"build/lite/{name}.safetensors"), strict=False)
        image = ImageConfig(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
        calibration, _ = photographs(options.photos, "train", size)
        test, labels = photographs(options.photos, "val", size)
        yield Case(f"{name} at {size}", net.eval(), image, calibration, test, labels)


@torch.no_grad()
def zoo_cases(_: argparse.Namespace) -> Iterator[Case]:
    from torchvision import models

    image = ImageConfig(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    draw = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(64 + 64, 3, 14, 14, generator=draw)
    smooth = nn.functional.interpolate(coarse, image.size, mode="bicubic").clamp(0, 1)
    pixels = (255 * smooth).byte().permute(0, 2, 3, 1).contiguous().numpy()
    for name in ZOO:
        torch.manual_seed(SEED)
        net = models.get_model(name, weights=None)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics of one batch
        net.train()(fracskip.preprocess(pixels[:32], image))
        yield Case(name, net.eval(), image, pixels[:64], pixels[64:], None, (8,))


# -- measuring ------------------------------------------------------------------------------------


def session_of(net: fracskip.DynamicNetwork) -> fracskip.InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fsk"
        fracskip.export_bundle(net, path)
        return fracskip.InferenceSession(path, threads=cores())


@torch.no_grad()
def in_torch(case: Case) -> NDArray[np.float32]:
    batches = np.array_split(case.test, max(1, len(case.test) // 64))
    found = [case.net(fracskip.preprocess(batch, case.image)).numpy() for batch in batches]
    return np.concatenate(found)


def row(name: str, found: Any, wanted: Any, labels: Any, **more: Any) -> dict[str, Any]:
    noise = float(np.square(found - wanted, dtype=np.float64).sum())
    signal = float(np.square(wanted - wanted.mean(0), dtype=np.float64).sum())
    values: dict[str, Any] = {"name": name, **more}
    if labels is not None:
        values["accuracy"] = float((found.argmax(1) == labels).mean())
    values["agreement"] = float((found.argmax(1) == wanted.argmax(1)).mean())
    values["snr_db"] = round(10 * float(np.log10(signal / noise)), 2) if noise else None
    return values


def by_nncf(case: Case) -> tuple[NDArray[np.float32], float]:
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)

    def floats(images: Any) -> NDArray[np.float32]:
        return fracskip.preprocess(images, case.image).contiguous().numpy()

    begin = time.perf_counter()
    shape = [1, 3, *case.image.size]
    model = ov.convert_model(case.net, example_input=torch.zeros(shape), input=shape)
    data = nncf.Dataset([floats(each[None]) for each in case.calibration])
    model = nncf.quantize(
        model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(case.calibration)
    )
    seconds = time.perf_counter() - begin
    run = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([np.array(run(floats(each[None]))[0]) for each in case.test]), seconds


def measured(case: Case) -> dict[str, Any]:
    wanted = in_torch(case)
    rows = [row("float", wanted, wanted, case.labels)]
    print(f"{case.name}: {rows[-1]}", flush=True)
    for bits in case.bits:
        begin, clock = time.perf_counter(), time.process_time()
        net = fracskip.quantize(case.net, case.calibration, options=(bits,), image=case.image)
        spent = time.perf_counter() - begin, time.process_time() - clock
        session = session_of(net)
        floats = sorted({k for _, _, names in session.kernels() for k in names if "float" in k})
        found = np.concatenate([session.run(part).logits for part in np.array_split(case.test, 16)])
        more = {"taken": net.notes["quantisation"]["taken"], "float_kernels": floats}
        times = {"seconds": round(spent[0], 1), "cpu_seconds": round(spent[1], 1)}
        rows.append(row(f"{bits} bits", found, wanted, case.labels, **more, **times))
        print(f"{case.name}: {rows[-1]}", flush=True)
    if importlib.util.find_spec("nncf") and importlib.util.find_spec("openvino"):
        found, seconds = by_nncf(case)
        rows.append(row("nncf int8", found, wanted, case.labels, seconds=round(seconds, 1)))
        print(f"{case.name}: {rows[-1]}", flush=True)
    images = {"calibration": len(case.calibration), "test": len(case.test)}
    return {"network": case.name, "size": list(case.image.size), "images": images, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = {"cifar": cifar_cases, "lite": lite_cases, "zoo": zoo_cases}
    parser.add_argument("cases", choices=cases)
    parser.add_argument("--photos", type=Path, help="of `lite`: train/CLASS and val/CLASS in it")
    parser.add_argument("--only", help="networks whose name begins so")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "schema": "fracskip.quantize/1",
        "command": ["python", "tools/measure_quantize.py", options.cases],
        "machine": describe_processor(cores()),
        "load_before": os.getloadavg()[0],
        "versions": versions(),
        "networks": [],
    }
    for case in cases[options.cases](options):
        if options.only is None or case.name.startswith(options.only):
            record["networks"].append(measured(case))
            options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
