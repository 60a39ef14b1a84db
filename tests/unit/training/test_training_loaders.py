"""What loaders give: taken in every usual form, or refused before the weights learn from it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.residual_networks import Network, PreActivation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from fracskip.dynamic import DynamicNetwork, convert, preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation import evaluate, sweep
from fracskip.training import fit
from fracskip.training.loaders import LoaderBatches, read_validation, taken

CLASSES = 5
CPU = torch.device("cpu")
PIXELS = torch.randint(
    0, 256, (8, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(8) % CLASSES


@pytest.fixture(scope="module")
def plain() -> DynamicNetwork:
    torch.manual_seed(0)
    net = Network(PreActivation, last=3).eval()
    return convert(net, [4, 8], example_input=torch.zeros(1, 3, 12, 12))


@pytest.fixture
def net(plain: DynamicNetwork) -> DynamicNetwork:
    return copy.deepcopy(plain)


@pytest.fixture
def images(net: DynamicNetwork) -> Tensor:
    return preprocess(PIXELS, net.spec.image)


# -- forms that are taken --------------------------------------------------------------------------

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a list": lambda x, y: [x, y],
    "three": lambda x, y: (x, y, ["file.png"] * 8),
    "image, label": lambda x, y: {"image": x, "label": y},
    "pixel_values, labels": lambda x, y: {"pixel_values": x, "labels": y, "id": 3},
    "img, target": lambda x, y: {"img": x, "target": y},
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "pixels": lambda x, y: (PIXELS, y),
    "int32": lambda x, y: (x, y.int()),
    "uint8": lambda x, y: (x, y.byte()),
    "a list of labels": lambda x, y: (x, y.tolist()),
    "a column": lambda x, y: (x, y[:, None]),
    "one-hot": lambda x, y: (x, F.one_hot(y, CLASSES)),
    "one-hot floats": lambda x, y: (x, F.one_hot(y, CLASSES).bfloat16()),
    "float64": lambda x, y: (x.double(), y),
    "with a gradient": lambda x, y: (x.clone().requires_grad_(), y),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_the_same_batch(net: DynamicNetwork, images: Tensor, form: str) -> None:
    batch = FORMS[form](images, LABELS)
    x, y = LoaderBatches([batch], CPU, net.spec).get("supernet", 0, 0)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, images)
    assert torch.equal(y, LABELS)
    held = read_validation([batch], 8, net.spec)
    assert np.array_equal(held.images, images.numpy())
    assert held.labels.tolist() == LABELS.tolist()
    wanted = evaluate(net, [(images, LABELS)], static=False, budget=0.03)
    found = evaluate(net, [batch], static=False, budget=0.03)
    assert [found[key] for key in ("accuracy", "cp", "classes")] == [
        wanted[key] for key in ("accuracy", "cp", "classes")
    ]


# -- what is refused -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "other keys": (
        lambda x, y: {"photo": x, "label": y},
        "batch 2: a batch has the keys 'photo', 'label': exactly one of 'image', .*'x' is needed "
        "for its images",
    ),
    "two keys": (
        lambda x, y: {"image": x, "label": y, "labels": y},
        "exactly one of 'label', .* is needed for its labels",
    ),
    "no labels": (lambda x, y: x, r"a batch is a Tensor: give \(images, labels\)"),
    "out of range": (lambda x, y: (x, y + 1), "from 1 to 5 do not fit 5 classes: use 0 to 4"),
    "ignored": (lambda x, y: (x, y - 1), "labels from -1 to 3 do not fit 5 classes"),
    "soft": (lambda x, y: (x, torch.full((8, 5), 0.2)), r"shape \(8, 5\) are soft"),
    "several": (lambda x, y: (x, torch.ones(8, 5)), "name several classes an image"),
    "other one-hot": (lambda x, y: (x, F.one_hot(y, 6)), r"shape \(8, 6\) and type int64 do not"),
    "floats": (lambda x, y: (x, y.float()), "type float32 do not fit 8 images: give one class"),
    "fewer": (lambda x, y: (x, y[:7]), r"labels of shape \(7,\) .* do not fit 8 images"),
    "NaN": (lambda x, y: (x * torch.nan, y), "batch 2: images hold NaN or infinite values"),
    "infinite": (lambda x, y: (x / 0, y), "images hold NaN or infinite values"),
    "no floats": (
        lambda x, y: (PIXELS.permute(0, 3, 1, 2), y),
        r"shape \(8, 3, 12, 12\) and type torch.uint8 do not fit: .*fracskip.preprocess",
    ),
    "no images": (lambda x, y: (x[:0], y[:0]), "at least one image"),
    "one image": (lambda x, y: (x[0], y[0]), r"images of shape \(3, 12, 12\)"),
    "files": (lambda x, y: (["a.png"], y[:1]), "a list (that )?is no array"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_does_not_fit_is_named_with_its_batch(
    net: DynamicNetwork, images: Tensor, form: str
) -> None:
    spoil, message = REFUSED[form]
    spoilt = [(images, LABELS), spoil(images, LABELS)]
    batches = LoaderBatches(spoilt, CPU, net.spec)
    batches.get("supernet", 0, 0)
    with pytest.raises(DataError, match=message) as one:
        batches.get("supernet", 0, 1)
    with pytest.raises(DataError, match=message) as two:
        read_validation(spoilt, 99, net.spec)
    with pytest.raises(DataError, match=message) as three:
        evaluate(net, spoilt, static=False, budget=0.03)
    for error, origin in ((one, "the training loader's"), (two, "the validation loader's")):
        assert str(error.value).startswith(f"{origin} batch 2: ")
    assert str(three.value).startswith("batch 2: ")
    assert all(len(str(each.value)) < 2000 for each in (one, two, three))


def test_a_batch_is_refused_before_the_weights_learn_from_it(
    net: DynamicNetwork, images: Tensor
) -> None:
    """Neither of the first epoch's batches but the first has moved anything."""
    good, bad = (images, LABELS), (images, LABELS + 3)
    with pytest.raises(DataError, match="batch 2: labels from 3 to 7"):
        fit(net, [good, bad], [good], 0.03, epochs=(1, 1, 1))
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert not net.training


def test_one_logit_is_no_class(images: Tensor) -> None:
    batch = (images, torch.zeros(8, dtype=torch.int64))
    plain = Network(PreActivation)
    plain.fc = nn.Linear(plain.fc.in_features, 1)
    net = convert(plain.eval(), [4, 8], example_input=torch.zeros(1, 3, 12, 12))
    for call in (lambda: fit(net, [batch], [batch]), lambda: evaluate(net, [batch])):
        with pytest.raises(ConfigError, match="has 1 logit: two at least are needed"):
            call()


def test_pixels_are_no_input_of_a_network(net: DynamicNetwork) -> None:
    with pytest.raises(ConfigError, match=r"uint8 are pixels.*fracskip.preprocess\(images, net"):
        net(PIXELS.permute(0, 3, 1, 2))


def test_a_gate_that_says_nan_is_named(net: DynamicNetwork, images: Tensor) -> None:
    with torch.no_grad():
        net.backbone.get_parameter("stem.0.weight").fill_(torch.nan)
    with pytest.raises(DataError, match="logits are NaN: images or weights hold NaN"):
        net(images, budget=0.03)


# -- passes ----------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Longer(list[Any]):
    def __len__(self) -> int:
        return super().__len__() + 1


def numbered(count: int) -> list[Any]:
    return [(torch.full((2, 3, 12, 12), float(n)), torch.tensor([n, n])) for n in range(count)]


@pytest.mark.parametrize(
    ("loader", "steps", "wanted"),
    [
        (numbered(3), None, [0, 1, 2]),
        (numbered(3), 2, [0, 1]),
        (numbered(3), 5, [0, 1, 2, 0, 1]),
        (DataLoader(Stream(numbered(3)), batch_size=None), 4, [0, 1, 2, 0]),
        (Longer(numbered(3)), None, [0, 1, 2, 0]),
    ],
    ids=["length", "fewer", "more", "stream", "ends early"],
)
def test_an_epoch_has_its_steps(
    net: DynamicNetwork, loader: Any, steps: int | None, wanted: list[int]
) -> None:
    batches = LoaderBatches(loader, CPU, net.spec, steps)
    assert batches.steps == len(wanted)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for purpose in ("norms", "supernet"):
            found = [int(batches.get(purpose, 0, n)[1][0]) for n in range(batches.steps)]
            assert found == wanted
    said = [str(each.message) for each in told if "training loader" in str(each.message)]
    early = "the training loader gave 3 batches and said that it has 4: it is gone through again"
    assert [text.startswith(early) for text in said] == [True] * isinstance(loader, Longer)


@pytest.mark.parametrize(
    ("loader", "steps", "message"),
    [
        ([], None, "training loader has 0: is its data set empty"),
        (numbered(1), 0, "1 at least"),
        (iter(numbered(1)), None, "an iterator can be gone through once only"),
        ((each for each in numbered(1)), 1, "an iterator can be gone through once only"),
        (DataLoader(Stream(numbered(1))), None, "has no length: say it with steps=N"),
    ],
    ids=["empty", "none", "iterator", "generator", "stream"],
)
def test_a_loader_that_says_too_little(
    net: DynamicNetwork, loader: Any, steps: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LoaderBatches(loader, CPU, net.spec, steps)


def test_a_loader_that_gives_nothing(net: DynamicNetwork) -> None:
    batches = LoaderBatches(Stream([]), CPU, net.spec, 3)
    with pytest.raises(DataError, match="training loader gave no batch"):
        batches.get("supernet", 0, 0)


def test_iterators_are_evaluated_once(net: DynamicNetwork, images: Tensor) -> None:
    def once() -> Iterator[Any]:
        return iter([(images, LABELS)])

    assert evaluate(net, once(), static=False, budget=0.03)["images"] == 8
    with pytest.raises(DataError, match="3 passes over the data are needed, and an iterator"):
        evaluate(net, once(), budget=0.03)
    curve = ((0.02, 1.0), (0.05, -1.0))
    net.operating_points = net.operating_points.changed(multiplier_curve=curve)
    with pytest.raises(DataError, match="2 passes over the data are needed, and an iterator"):
        sweep(net, once(), [0.02, 0.05])


@pytest.mark.parametrize(("factor", "range_"), [(1.0, "0 to 255"), (1 / 255, "0 to 1")])
def test_pixels_as_floats_are_refused(net: DynamicNetwork, factor: float, range_: str) -> None:
    floats = PIXELS.permute(0, 3, 1, 2).float()
    floats[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    given, message = [(floats * factor, LABELS)], f"batch 1: float images with values .* {range_} "
    with pytest.raises(DataError, match=f"validation loader's {message}"):
        read_validation(given, 8, net.spec)
    with pytest.raises(DataError, match=f"training loader's {message}"):
        LoaderBatches(given, CPU, net.spec).get("supernet", 0, 0)
    assert np.array_equal(
        read_validation(given, 8, net.spec, normalised=True).images, floats * factor
    )


# -- few images ------------------------------------------------------------------------------------


class Other(nn.Module):
    """A stem, blocks and a head, with a norm of any kind in one of them."""

    def __init__(self, norm: nn.Module, in_head: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Identity() if in_head else norm)
        self.blocks = nn.Sequential(*(PreActivation(6, 6) for _ in range(3)))
        self.fc = nn.Sequential(
            nn.Linear(6, 6), norm if in_head else nn.Identity(), nn.Linear(6, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:the network that was converted is right")
@pytest.mark.filterwarnings("ignore:the target of")
@pytest.mark.parametrize(
    ("norm", "in_head"),
    [
        (nn.BatchNorm1d, True),
        (nn.BatchNorm2d, False),
        (nn.SyncBatchNorm, False),
        (lambda count: nn.InstanceNorm2d(count, track_running_stats=True), False),
    ],
    ids=["BatchNorm1d", "BatchNorm2d", "SyncBatchNorm", "InstanceNorm2d"],
)
def test_statistics_stand_still_and_one_image_is_a_batch(
    images: Tensor, norm: Callable[[int], nn.Module], in_head: bool
) -> None:
    torch.manual_seed(0)
    plain = Other(norm(6), in_head).eval()
    net = convert(plain, [4, 8], example_input=torch.zeros(1, 3, 12, 12))
    name = "fc.1" if in_head else "stem.1"
    before = net.backbone.get_submodule(name).running_mean.clone()
    batches = [(images, LABELS), (images[:1], LABELS[:1])]
    fit(net, batches, [(images, LABELS)], 0.03, epochs=(1, 1, 1))
    after = net.backbone.get_submodule(name)
    assert torch.equal(after.running_mean, before)
    assert not net.train().backbone.get_submodule(name).training


@pytest.mark.filterwarnings("ignore:the network that was converted is right")
@pytest.mark.filterwarnings("ignore:the target of")
@pytest.mark.parametrize("count", [1, CLASSES], ids=["one image", "one a class"])
def test_so_few_images_train(net: DynamicNetwork, images: Tensor, count: int) -> None:
    batch = (images[:count], LABELS[:count])
    found = fit(net, [batch], [(images, LABELS)], 0.03, epochs=(1, 1, 1))
    assert [event["stage"] for event in found["epochs"]] == ["supernet", "gates", "joint"]
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_taken_says_which_batch() -> None:
    spec = convert(
        Network(PreActivation).eval(), [4, 8], example_input=torch.zeros(1, 3, 12, 12)
    ).spec
    with pytest.raises(DataError, match=r"^here: a batch is a int"):
        taken(3, spec, "here")
