"""Pixels of the images that a record names: they are fetched when a page or a figure is drawn."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracskip.data import ImageSet, find_again, keys_of
from fracskip.errors import DataError
from fracskip.report.records import EvaluationRecord, Example

LARGEST = 256  # height and width of a picture, in pixels


def with_pictures(record: EvaluationRecord, data: str = "") -> tuple[EvaluationRecord, str]:
    """A record whose examples hold their pictures, as far as the images are at hand.

    Args:
        record: Its examples hold indices; those of older versions hold pictures, which stay.
        data: A data set to search beside the bundled sample and the cache, as recipes name it.

    Returns:
        The record, and a sentence that says why pictures are missing; '' if none is.

    Raises:
        DataError: if `data` cannot be read.
    """
    examples, held = record.examples, record.data
    everything = (*examples.cheapest, *examples.dearest)
    if all(example.png is not None for example in everything):
        return record, ""
    try:
        found = _found(record, data)
    except DataError as error:
        if data:
            raise
        return record, f"The pictures are not shown: {error}."
    if found is None:
        return record, _not_found(held.name, held.split)
    images = found.images

    def pictured(row: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            example
            if example.png is not None or example.index >= len(images)
            else example.model_copy(update={"png": _png(images[example.index])})
            for example in row
        )

    update = {"cheapest": pictured(examples.cheapest), "dearest": pictured(examples.dearest)}
    return record.model_copy(update={"examples": examples.model_copy(update=update)}), ""


def _found(record: EvaluationRecord, data: str) -> ImageSet | None:
    held = record.data
    if not held.digest or held.image is None:
        return None
    return find_again(held.name, held.split, held.digest, record.images, held.image, data)


def _not_found(title: str, split: str) -> str:
    names = keys_of(title)
    advice = "name their data set (`fracskip report --data folder:PATH`)"
    if names:
        advice = f"get them by {' or '.join(f'`fracskip data {name}`' for name in names)}"
    return f"The pictures are not shown: these {split} images of {title} are not here; {advice}."


def _png(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, C) as a PNG in base64."""
    file = io.BytesIO()
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
