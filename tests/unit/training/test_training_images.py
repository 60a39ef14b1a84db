"""Which images a run sees, and when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fracskip.config import Recipe
from fracskip.data import ImageSet, load_split
from fracskip.errors import DataError
from fracskip.training import loop, train
from fracskip.training.batches import Batches

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run

SHORT = {"backbone": {"epochs": 1}, "gates": {"epochs": 1}, "joint": {"epochs": 1}}


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[ImageSet]:
    """The training images of each run, in the order of the runs."""
    given: list[ImageSet] = []

    class WatchedBatches(Batches):
        def __init__(self, images: ImageSet, *rest: Any) -> None:
            given.append(images)
            super().__init__(images, *rest)

    monkeypatch.setattr(loop, "Batches", WatchedBatches)
    return given


def test_validation_is_carved_and_the_test_set_is_read_once_at_the_end(
    tiny_recipe: Make,
    run: Go,
    trained_on: list[ImageSet],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen: dict[str, set[bytes]] = {"train": set(), "validation": set(), "test": set()}
    reads: list[tuple[str, int]] = []

    def bytes_of(images: np.ndarray) -> set[bytes]:
        return {image.tobytes() for image in images}

    def watched_load(name: str, split: str, image: Any, **options: Any) -> Any:
        log = tmp_path / "run" / "record.jsonl"
        reads.append((split, len(log.read_text().splitlines()) if log.exists() else 0))
        return load_split(name, split, image, **options)

    def watched_evaluate(net: Any, data: Any, **options: Any) -> Any:
        seen[data.split] |= bytes_of(data.images)
        return evaluate(net, data, **options)

    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "load_split", watched_load)
    monkeypatch.setattr(loop, "evaluate", watched_evaluate)
    recipe = tiny_recipe(**SHORT)
    run(recipe)
    for images in trained_on:
        seen["train"] |= bytes_of(images.images)

    everything = load_split(recipe.data.name, "train", recipe.data.image)
    test = load_split(recipe.data.name, "test", recipe.data.image)
    assert reads == [("train", 0), ("test", 4)]  # after the start and three epochs
    assert (len(seen["train"]), len(seen["validation"]), len(seen["test"])) == (39, 9, 12)
    assert not seen["train"] & seen["validation"]
    assert seen["train"] | seen["validation"] == bytes_of(everything.images)
    assert seen["test"] == bytes_of(test.images)


def test_a_limit_cuts_the_training_images_after_carving(
    tiny_recipe: Make, run: Go, trained_on: list[ImageSet]
) -> None:
    limited = run(tiny_recipe(**SHORT, data={"train_limit": 25}), "a")
    assert [event["step"] for event in limited.epochs] == [2, 2, 2]
    run(tiny_recipe(**SHORT, data={"train_limit": 1000}), "b")
    assert [len(images) for images in trained_on] == [25, 39]
    # Fewer images than a batch holds are a batch.
    assert [
        event["step"] for event in run(tiny_recipe(**SHORT, data={"train_limit": 5}), "c").epochs
    ] == [1, 1, 1]


def test_other_random_numbers_hold_out_the_same_images(
    tiny_recipe: Make, run: Go, trained_on: list[ImageSet]
) -> None:
    """A second seed of what follows a backbone must not be validated on images that it has seen."""
    first = run(tiny_recipe(**SHORT, seed=0), "a")
    second = run(tiny_recipe(**SHORT, seed=1), "b")
    run(tiny_recipe(**SHORT, seed=0, data={"split_seed": 1}), "c")
    kept = [images.images.tobytes() for images in trained_on]
    assert kept[0] == kept[1] != kept[2]
    assert [event["loss"] for event in first.epochs] != [event["loss"] for event in second.epochs]


@pytest.mark.parametrize("validation", [46, 1000])
def test_too_many_validation_images(tiny_recipe: Make, tmp_path: Path, validation: int) -> None:
    recipe = tiny_recipe(data={"validation": validation})
    with pytest.raises(DataError, match="validation images cannot be carved"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
