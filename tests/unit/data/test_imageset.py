import numpy as np
import pytest
from data_builders import image_set
from hypothesis import given
from hypothesis import strategies as st

from fracskip.data import imageset
from fracskip.data.imageset import ImageSet, check_memory, split_validation
from fracskip.errors import DataError

IMAGES = np.zeros((2, 3, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1])


def make(
    images: np.ndarray = IMAGES,
    labels: np.ndarray = LABELS,
    class_names: tuple[str, ...] = ("a", "b"),
) -> ImageSet:
    return ImageSet(images, labels, class_names, "Tiny", "train", "made up")


def test_non_square_images_and_one_class_are_fine() -> None:
    assert len(make(labels=np.array([0, 0]), class_names=("only",))) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": IMAGES.astype(np.float32)}, "float32.*give uint8"),
        ({"images": IMAGES[0]}, r"\(3, 5, 3\).*\(N, H, W, C\)"),
        ({"images": IMAGES[..., :2]}, "1 or 3 channels"),
        ({"images": IMAGES[:, ::-1]}, "not contiguous"),
        ({"labels": LABELS.astype(np.int32)}, "int32.*give int64"),
        ({"labels": np.array([0])}, "one label an image"),
        ({"labels": np.array([0, 2])}, r"from 0 to 2.*2 class names.*0\.\.1"),
        ({"labels": np.array([-1, 0])}, "from -1 to 0"),
        ({"class_names": ()}, "class names .* are empty or repeat"),
        ({"class_names": ("a", "a")}, "class names .* are empty or repeat"),
    ],
)
def test_what_is_no_image_set_is_refused(change: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(**change)


def test_a_subset_keeps_the_given_order() -> None:
    subset = image_set([0, 1, 0, 1]).subset([3, 0])
    assert subset.images[:, 0, 0, 0].tolist() == [3, 0]
    assert subset.labels.tolist() == [1, 0]
    assert len(subset.subset([])) == 0


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([0, 4], r"from 0 to 4.*0\.\.3"),
        ([-1], r"from -1 to -1"),
        ([True, False, True, False], "flat list of indices; got bool"),
        ([[0, 1]], "flat list"),
        ([0.5], "float64"),
    ],
)
def test_indices_that_are_none_are_refused(indices: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        image_set([0, 1, 0, 1]).subset(indices)


def test_validation_is_stratified_disjoint_and_in_order() -> None:
    train = image_set([0] * 60 + [1] * 30 + [2] * 10, classes=3)
    rest, carved = split_validation(train, 10, seed=1)
    assert np.bincount(carved.labels).tolist() == [6, 3, 1]
    kept, gone = rest.images[:, 0, 0, 0].tolist(), carved.images[:, 0, 0, 0].tolist()
    assert sorted(kept + gone) == list(range(100))
    assert kept == sorted(kept)
    assert gone == sorted(gone)
    assert (rest.split, carved.split) == ("train", "validation")


def test_validation_follows_from_the_seed_on_every_machine() -> None:
    train = image_set([0, 1] * 20)
    indices = {
        seed: split_validation(train, 6, seed)[1].images[:, 0, 0, 0].tolist() for seed in (0, 1)
    }
    assert indices == {0: [2, 3, 11, 13, 20, 32], 1: [2, 9, 16, 31, 36, 39]}


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_validation_has_the_count_asked_for_and_leaves_every_class(
    labels: list[int], share: float, seed: int
) -> None:
    train = image_set(labels, classes=4)
    available = len(labels) - len(set(labels))
    if not available:
        return
    count = 1 + int(share * (available - 1))
    rest, carved = split_validation(train, count, seed)
    assert len(carved) == count
    assert set(rest.labels) == set(labels)


@pytest.mark.parametrize("count", [0, -1, 3, 4, 100])
def test_a_validation_set_that_uses_a_class_up_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"{count} validation images .* ask for 1 to 2"):
        split_validation(image_set([0, 1, 0, 1]), count, seed=0)


def test_what_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(60_000, 224, 224, 1, "Tiny")
    with pytest.raises(DataError, match=r"Tiny would take 28\.0 GiB .* at most 8 GiB"):
        check_memory(200_000, 224, 224, 3, "Tiny")
    monkeypatch.setattr(imageset, "MAX_BYTES", 11)
    with pytest.raises(DataError, match=r"choose a smaller image\.size"):
        check_memory(1, 2, 2, 3, "Tiny")
