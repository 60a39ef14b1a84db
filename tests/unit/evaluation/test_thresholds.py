"""`fracskip.cascade`: which members go together, which validation images do, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fracskip
from fracskip.config import ImageConfig
from fracskip.data import ImageSet
from fracskip.errors import ConfigError, DataError
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import Bundle
from support.small_cascades import networks, small_cascade

COUNT = 600
FEW = "validation images are few"


@pytest.fixture(scope="module")
def pair() -> list[Bundle]:
    return networks((8, 10), (12, 12))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)


def labelled(images: np.ndarray, labels: Any = None, names: Any = None) -> ImageSet:
    labels = np.arange(len(images)) % 5 if labels is None else labels
    names = tuple(map(str, range(5))) if names is None else names
    return ImageSet(images, np.asarray(labels, np.int64), names, "noise", "validation", "here")


def class_names(pair: list[Bundle]) -> tuple[str, ...]:
    return pair[0].plan.class_names


def test_members_of_any_kind_make_the_same_cascade(
    pair: list[Bundle], images: np.ndarray, tmp_path: Path
) -> None:
    """Bundles, sessions and files; a set, and batches of its images; in any order."""
    data = labelled(images, names=class_names(pair))
    expected = fracskip.cascade(pair, data)
    (tmp_path / "a.fsk").write_bytes(pair[0].data)
    batches = [(images[k : k + 100], data.labels[k : k + 100]) for k in range(0, COUNT, 100)]
    for members, validation in [
        ([InferenceSession.of(pair[1]), tmp_path / "a.fsk"], data),
        ([str(tmp_path / "a.fsk"), pair[1]], batches),
    ]:
        assert fracskip.cascade(members, validation).digest == expected.digest
    assert [member.bitops for member in expected.plan.members] == sorted(
        member.bitops for member in expected.plan.members
    )
    alone = InferenceSession.of(pair[1]).run(images)
    (last,) = (p for p in expected.plan.points if p.chain == (1,))
    assert last.against[1] == (0, 0)
    assert expected.plan.images == COUNT - COUNT // 3
    session = expected.session()
    choice = session.choose(1.0)
    found = session.run_choice(images, choice)
    np.testing.assert_allclose(
        [len(e.rows) / COUNT for e in found.executions], choice.rates, atol=0.02
    )
    assert alone.logits.shape == found.logits.shape


def test_normalised_floats_are_pixels_again(pair: list[Bundle], images: np.ndarray) -> None:
    data = labelled(images, names=class_names(pair))
    image = pair[1].plan.image
    mean, std = (np.array(each, np.float32) for each in (image.mean, image.std))
    floats = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    found = fracskip.cascade(pair, [(floats, data.labels)])
    assert found.digest == fracskip.cascade(pair, data).digest
    other = ImageConfig(size=(12, 12), mean=(9.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(DataError, match="say with image= how they were normalised"):
        fracskip.cascade(pair, [(floats, data.labels)], image=other)


def test_a_network_that_takes_budgets_is_several_members(images: np.ndarray) -> None:
    (net,) = networks((12, 12), options=("skip", 8), budget_input=True, gate_width=4)
    names = net.plan.class_names
    found = fracskip.cascade([(net, 0.1), (net, 0.9)], labelled(images, names=names))
    assert len(found.plan.networks) == 1
    assert {member.budget for member in found.plan.members} == {0.1, 0.9}
    assert all(len(member.shares) == len(net.plan.gated) for member in found.plan.members)
    spread = fracskip.cascade([net], labelled(images, names=names))
    assert len(spread.plan.members) == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, d: (m[:1], d), ConfigError, "of 1 members has nothing to escalate to"),
        (lambda m, d: ([m[0], m[0]], d), ConfigError, "stands twice in the cascade: leave one out"),
        (lambda m, d: ([*m, small_cascade().networks[1]] * 2, d), ConfigError, "stands twice"),
        (lambda m, d: ([(m[0], 0.5), m[1]], d), ConfigError, "takes none: leave budget out"),
        (
            lambda m, d: ([m[0], *networks((12, 12), classes=4)], d),
            ConfigError,
            "a cascade's networks have the same classes",
        ),
        (lambda m, d: (m, d.subset([])), DataError, "there is no validation image"),
        (lambda m, d: (m, []), DataError, "the data gave no batch"),
        (
            lambda m, d: (m, labelled(d.images, np.zeros(COUNT), d.class_names)),
            DataError,
            "are of one class, which no threshold can be chosen by",
        ),
        (lambda m, d: (m, [(d.images, d.labels + 1)]), DataError, "do not fit 5 classes"),
        (
            lambda m, d: (m, labelled(np.ascontiguousarray(d.images[:, :10]), names=d.class_names)),
            DataError,
            "are smaller than the largest member takes",
        ),
        (
            lambda m, d: (m, labelled(d.images, names=tuple("vwxyz"))),
            DataError,
            "other classes than the members",
        ),
        (
            lambda m, d: ([fracskip.Cascade(small_cascade()), m[0]], d),
            ConfigError,
            "a cascade itself",
        ),
    ],
)
def test_what_makes_no_cascade_is_refused(
    pair: list[Bundle], images: np.ndarray, change: Any, error: type[Exception], message: str
) -> None:
    members, data = change(pair, labelled(images, names=class_names(pair)))
    with pytest.raises(error, match=message) as caught:
        fracskip.cascade(members, data)
    assert "\n" not in str(caught.value)


def test_few_images_and_known_ones_are_warned_of(pair: list[Bundle], images: np.ndarray) -> None:
    data = labelled(images, names=class_names(pair))
    with pytest.warns(UserWarning, match=f"60 {FEW}"):
        fracskip.cascade(pair, data.subset(range(60)))
    learned = InferenceSession.of(pair[1]).run(images).predicted
    with pytest.warns(UserWarning, match=r"right on 100\.00% of the validation images"):
        fracskip.cascade(pair, labelled(images, learned, class_names(pair)))
