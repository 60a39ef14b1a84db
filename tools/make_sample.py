"""Makes the bundled sample from the cached CIFAR-10 test set (`fracskip data cifar10`).

Run from the repository's root: python tools/make_sample.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fracskip.data.sample import NOTES, PER_CLASS, SHEET, SampleNotes, to_sheet
from fracskip.data.store import digest, load

ASSETS = Path(__file__).parents[1] / "src" / "fracskip" / "assets"


def main() -> None:
    test = load("cifar10", "test")
    classes = range(len(test.class_names))
    indices = np.sort(
        np.concatenate([np.flatnonzero(test.labels == label)[:PER_CLASS] for label in classes])
    )
    sample = test.subset(indices)
    notes = SampleNotes(
        source=f"CIFAR-10 test set, the first {PER_CLASS} images of each class in test order "
        "(A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
        sha256=digest(sample.images),
        class_names=sample.class_names,
        labels=tuple(sample.labels.tolist()),
        test_indices=tuple(indices.tolist()),
    )
    Image.fromarray(to_sheet(sample.images)).save(ASSETS / SHEET, optimize=True)
    (ASSETS / NOTES).write_text(notes.model_dump_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
