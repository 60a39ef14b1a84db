"""A cascade in ONNX Runtime: what `fracskip export` or `fracskip cascade --to NAME.onnx` wrote.

    python examples/cascade_onnx.py photos.json --budget 0.7 cat.jpg ship.jpg

Needs onnxruntime, NumPy, Pillow and fracskip; no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.data import decode_image
from fracskip.data.resampling import resize
from fracskip.operating.cascade import CascadePoints
from fracskip.operating.scores import answers_of, score_of


class OnnxCascade:
    """The models and thresholds of a cascade.

    Args:
        path: The JSON file; models lie beside it.
        budget: Mean BitOps of an image over those of the last member alone.
    """

    def __init__(self, path: Path, budget: float) -> None:
        tree = json.loads(path.read_text(encoding="utf-8"))
        self.points = CascadePoints.model_validate_json(
            json.dumps({key: tree[key] for key in CascadePoints.model_fields})
        )
        self.choice = self.points.at_cost(budget, self.points.bitops, "budget {}")
        self.images = [ImageConfig.model_validate(image) for image in tree["inputs"]]
        self.largest = max(self.images, key=lambda image: image.size)
        self.models = [
            onnxruntime.InferenceSession(path.with_name(name)) for name in tree["models"]
        ]

    def run(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int]:
        """Logits (N,) of an image, uint8 (H, W, C), and how many members it took."""
        seen: list[NDArray[np.float32]] = []
        temperatures: list[float] = []
        for place, index in enumerate(self.choice.chain):
            member = self.points.members[index]
            temperatures.append(member.temperature)
            seen.append(self._logits(member.network, member.budget, pixels))
            answer = answers_of(seen, temperatures, self.points.averaged)[-1]
            last = place == len(self.choice.thresholds)
            if last or score_of(answer, self.points.score)[0] >= np.float32(
                self.choice.thresholds[place]
            ):
                break
        return answer[0], len(seen)

    def _logits(
        self, network: int, budget: float | None, pixels: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        image = self.images[network]
        sized = resize(pixels[None], image.size)
        mean, std = (np.array(each, np.float32) for each in (image.mean, image.std))
        floats = ((sized / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        given = {"images": np.ascontiguousarray(floats, np.float32)}
        if budget is not None:
            given["budget"] = np.full((1, 1), budget, np.float32)
        (logits,) = self.models[network].run(["logits"], given)
        return np.asarray(logits, np.float32)


def main() -> None:
    """Classifies the pictures that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cascade", type=Path, help="the JSON file")
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--budget", type=float, default=1.0)
    options = parser.parse_args()
    cascade = OnnxCascade(options.cascade, options.budget)
    for picture in options.pictures:
        logits, members = cascade.run(decode_image(picture, cascade.largest))
        print(f"{picture}: class {logits.argmax()}, {members} members")


if __name__ == "__main__":
    main()
