"""Records name images; pages and figures find their pixels again, or say that they cannot."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_records import make_evaluation

from fracskip.config import ImageConfig
from fracskip.data import ImageSet, load_sample, load_split
from fracskip.data import store as cache
from fracskip.errors import DataError
from fracskip.report import write_report
from fracskip.report.pixels import with_pictures
from fracskip.report.records import EvaluationRecord

NATIVE = ImageConfig()
DOUBLE = ImageConfig(size=(64, 64))
LARGE = ImageConfig(size=(300, 600), resize=320, channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACSKIP_CACHE", str(tmp_path / "cache"))


def measured(data: ImageSet, image: ImageConfig) -> dict[str, Any]:
    """A record of these images, the first and the last of which are named."""
    tree = make_evaluation(examples=1)
    for side, index in (("cheapest", 0), ("dearest", len(data) - 1)):
        tree["examples"][side][0]["index"] = index
        del tree["examples"][side][0]["png"]
    held = {"digest": cache.digest(data.images), "image": image.model_dump(mode="json")}
    return tree | {"images": len(data), "data": {"name": data.name, "split": data.split, **held}}


def shown(tree: dict[str, Any], data: str = "") -> list[np.ndarray]:
    record, missing = with_pictures(EvaluationRecord.model_validate(tree), data)
    assert missing == ""
    pictures = [record.examples.cheapest[0].png, record.examples.dearest[0].png]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png or "")))) for png in pictures]


def stored() -> ImageSet:
    """A cached data set that goes by CIFAR-10's name."""
    sample = load_sample()
    halves = {"train": sample.subset(range(9)), "test": sample.subset(range(9, 20))}
    arrays = {f"{split}_images": half.images for split, half in halves.items()}
    arrays |= {f"{split}_labels": half.labels for split, half in halves.items()}
    cache.save("cifar10", cache.RawSet("CIFAR-10", "made up", sample.class_names, arrays))
    return replace(halves["train"], name="CIFAR-10", split="train")


@pytest.mark.parametrize(
    "measure",
    [load_sample, lambda: load_sample().evenly(7), stored, lambda: stored().evenly(4)],
    ids=["sample", "some of it", "cached", "some of them"],
)
def test_images_at_hand_are_shown(measure: Callable[[], ImageSet]) -> None:
    data = measure()
    first, last = shown(measured(data, NATIVE))
    np.testing.assert_array_equal(first, data.images[0])
    np.testing.assert_array_equal(last, data.images[-1])


def test_images_are_shown_as_the_network_took_them() -> None:
    fitted = load_split("sample", "test", DOUBLE)
    first, _ = shown(measured(fitted, DOUBLE))
    np.testing.assert_array_equal(first, fitted.images[0])


def test_a_folder_is_shown_where_it_is_named_and_large_images_small(pictures: Path) -> None:
    folder = f"folder:{pictures}"
    tree = measured(load_split(folder, "test", LARGE), LARGE)
    first, last = shown(tree, folder)
    assert first.shape == last.shape == (128, 256)
    record, missing = with_pictures(EvaluationRecord.model_validate(tree))
    assert record.examples.dearest[0].png is None
    assert missing == (
        f"The pictures are not shown: these test images of {tree['data']['name']} are not here; "
        "name their data set (`fracskip report --data folder:PATH`)."
    )
    with pytest.raises(DataError, match="data set 'folders' is unknown"):
        with_pictures(record, "folders")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    tree = measured(stored(), NATIVE)
    tree["data"]["digest"] = "0" * 64
    other = "The pictures are not shown: these train images of CIFAR-10 are not here; get them by "
    record = EvaluationRecord.model_validate(tree)
    assert with_pictures(record) == (record, f"{other}`fracskip data cifar10`.")
    (tmp_path / "cache" / "cifar10" / "train_images.npy").write_bytes(b"")
    _, missing = with_pictures(record)
    assert missing.startswith("The pictures are not shown: cached file")
    (tmp_path / "r.json").write_text(record.model_dump_json(by_alias=True))
    page = write_report([tmp_path / "r.json"], tmp_path / "r.html").read_text()
    assert "<p>The pictures are not shown: cached file" in page
    assert "<img" not in page


def test_records_of_old_hold_their_pictures() -> None:
    record = EvaluationRecord.model_validate(make_evaluation(examples=2))
    assert with_pictures(record) == (record, "")
