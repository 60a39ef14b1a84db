import numpy as np
import pytest
import torch

from fracskip.config import DataConfig, ImageConfig
from fracskip.data import ImageSet
from fracskip.training.balance import balanced_order, class_weights, rare_classes
from fracskip.training.batches import Batches, _resampling, crop_padded, crop_resized, cutout
from fracskip.training.randomness import derive_seed, generator_at

CPU = torch.device("cpu")


def pixels(count: int = 3, height: int = 5, width: int = 7, channels: int = 3) -> torch.Tensor:
    """Values from 1: a zero can only be padding."""
    draw = np.random.RandomState(1)
    values = draw.randint(1, 256, (count, height, width, channels))
    return torch.from_numpy(values.astype(np.uint8))


def windows(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    """Every crop of a zero-padded image (H, W, C), cut by hand."""
    height, width, channels = image.shape
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, channels, dtype=torch.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    shifts = range(2 * padding + 1)
    return [padded[y : y + height, x : x + width] for y in shifts for x in shifts]


# -- crops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_a_window_of_the_padded_image(channels: int, flip: bool) -> None:
    images = pixels(40, channels=channels)
    out = crop_padded(images, images.shape[1:3], 2, flip, generator_at(0, "test"))
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)
    mirrored = 0
    places = set()
    for before, after in zip(images, out, strict=True):
        plain = [torch.equal(after, window) for window in windows(before, 2)]
        turned = [torch.equal(after, window) for window in windows(before.flip(1), 2)]
        assert sum(plain) + sum(turned) == 1
        mirrored += any(turned)
        places.add((plain if any(plain) else turned).index(True))
    assert len(places) > 15  # of 25: crops do move
    assert 8 < mirrored < 32 if flip else mirrored == 0


def test_no_padding_and_no_flip_changes_nothing() -> None:
    images = pixels()
    assert torch.equal(
        crop_padded(images, images.shape[1:3], 0, False, generator_at(0, "x")), images
    )


def test_a_flip_alone_mirrors_columns() -> None:
    images = pixels(30)
    out = crop_padded(images, images.shape[1:3], 0, True, generator_at(4, "x"))
    same = [torch.equal(a, b) for a, b in zip(images, out, strict=True)]
    turned = [torch.equal(a.flip(1), b) for a, b in zip(images, out, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 5 < sum(turned) < 25


def test_one_image_of_one_pixel() -> None:
    out = crop_padded(pixels(1, 1, 1, 1), (1, 1), 1, True, generator_at(0, "x"))
    assert out.shape == (1, 1, 1, 1)


def test_the_generator_decides() -> None:
    images = pixels(20)
    first = crop_padded(images, images.shape[1:3], 2, True, generator_at(1, "a"))
    assert torch.equal(first, crop_padded(images, images.shape[1:3], 2, True, generator_at(1, "a")))
    assert not torch.equal(
        first, crop_padded(images, images.shape[1:3], 2, True, generator_at(1, "b"))
    )
    assert not torch.equal(
        first, crop_padded(images, images.shape[1:3], 2, True, generator_at(2, "a"))
    )


def test_crops_are_those_that_they_were() -> None:
    """With a padded image of its own size, one draw for both shifts, as runs before had it."""
    images = pixels(50, 6, 9)
    draw = generator_at(3, "x")
    shift = torch.randint(0, 5, (2, 50, 1), generator=draw)
    mirror = torch.randint(0, 2, (50, 1), generator=draw).bool()
    columns = torch.arange(9).expand(50, 9)
    columns = torch.where(mirror, columns.flip(1), columns) + shift[1]
    rows = torch.arange(6) + shift[0]
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2))
    expected = padded[torch.arange(50)[:, None, None], rows[:, :, None], columns[:, None, :]]
    assert torch.equal(crop_padded(images, (6, 9), 2, True, generator_at(3, "x")), expected)


def test_a_smaller_crop_is_cut_out_of_a_larger_image() -> None:
    images = pixels(60, 8, 9)
    out = crop_padded(images, (5, 5), 0, False, generator_at(0, "x"))
    assert out.shape == (60, 5, 5, 3)
    places = set()
    for before, after in zip(images, out, strict=True):
        found = [
            (y, x)
            for y in range(4)
            for x in range(5)
            if torch.equal(before[y : y + 5, x : x + 5], after)
        ]
        places.update(found)
        assert len(found) == 1
    assert {y for y, _ in places} == set(range(4))
    assert {x for _, x in places} == set(range(5))


# -- resized crops --------------------------------------------------------------------------------


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Images that say where a pixel was: rows in the first channel, columns in the second."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    image = torch.stack((rows, columns, torch.zeros(height, width)), -1)
    return image.to(torch.uint8).expand(count, -1, -1, -1).contiguous()


@pytest.mark.parametrize("wanted", [(50, 50), (20, 30), (120, 90)])
def test_resized_crops_lie_within_the_image_and_the_scale(wanted: tuple[int, int]) -> None:
    height, width = 100, 200
    images = ramps(300, height, width)
    out = crop_resized(images, wanted, (0.3, 0.8), False, generator_at(0, "x"))
    assert (out.dtype, out.shape) == (torch.uint8, (300, *wanted, 3))
    first, last = out[:, 0, 0].float(), out[:, -1, -1].float()
    # From the centre of the first pixel to that of the last: less than the crop by one of its own.
    sides = (last - first)[:, :2] * torch.tensor([n / (n - 1) for n in wanted])
    shares = sides / torch.tensor([height, width])
    area = shares.prod(1)
    assert 0.25 < area.min() < 0.35
    assert 0.7 < area.max() < 0.85
    aspect = shares[:, 1] / shares[:, 0]
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.4
    assert abs(float(aspect.log().mean())) < 0.05
    for axis in range(2):
        assert len(first[:, axis].unique()) > 20  # they lie anywhere
    assert (out[..., 2] == 0).all()


@pytest.mark.parametrize("wanted", [(12, 12), (31, 17), (80, 64)])
def test_the_whole_image_is_resampled_as_torch_does(wanted: tuple[int, int]) -> None:
    """With antialiasing where it shrinks, and bilinearly where it grows."""
    images = pixels(8, 40, 33)
    whole = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2).float(), wanted, mode="bilinear", antialias=True
    )
    parts = [
        _resampling(torch.ones(8), torch.rand(8), inside, to)
        for inside, to in zip((40, 33), wanted, strict=True)
    ]
    found = parts[0][:, None] @ images.permute(0, 3, 1, 2).float() @ parts[1].mT[:, None]
    torch.testing.assert_close(found, whole, atol=1e-2, rtol=0)


def test_resized_crops_are_mirrored() -> None:
    images = ramps(60, 30, 30)
    plain = crop_resized(images, (10, 10), (0.4, 1.0), False, generator_at(2, "x"))
    flipped = crop_resized(images, (10, 10), (0.4, 1.0), True, generator_at(2, "x"))
    turned = [torch.equal(a.flip(1), b) for a, b in zip(plain, flipped, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True))
    assert 15 < sum(turned) < 45


def test_grey_images_are_cropped_too() -> None:
    out = crop_resized(pixels(3, channels=1), (8, 8), (0.5, 1.0), True, generator_at(0, "x"))
    assert out.shape == (3, 8, 8, 1)


# -- batches --------------------------------------------------------------------------------------

IMAGE = ImageConfig(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def numbered(count: int, side: int = 8) -> ImageSet:
    """Images of one grey value each, its number + 1; the label is the number."""
    values = np.arange(1, count + 1, dtype=np.uint8)
    images = np.ascontiguousarray(
        np.broadcast_to(values[:, None, None, None], (count, side, side, 3))
    )
    names = tuple(map(str, range(count)))
    return ImageSet(images, np.arange(count), names, "Tiny", "train", "made up")


def batches(count: int = 10, size: int = 4, seed: int = 0, **changes: object) -> Batches:
    config = DataConfig.model_validate(
        {"image": IMAGE, "crop_padding": 0, "flip": False, **changes}
    )
    return Batches(numbered(count), config, size, seed, CPU)


def test_labels_follow_their_images() -> None:
    images, labels = batches().get("joint", 0, 1)
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 8, 8), torch.float32, torch.int64)
    values = (labels + 1).float() / 255
    for channel, (mean, std) in enumerate(zip(IMAGE.mean, IMAGE.std, strict=True)):
        expected = ((values - mean) / std)[:, None, None].expand(4, 8, 8)
        torch.testing.assert_close(images[:, channel], expected)


def test_padding_is_black_before_normalisation() -> None:
    """Padded pixels are 0 and then normalised like any other: not the mean's grey."""
    images, labels = batches(count=60, size=60, crop_padding=3).get("joint", 0, 0)
    black = [(0 - mean) / std for mean, std in zip(IMAGE.mean, IMAGE.std, strict=True)]
    found = 0
    for image, label in zip(images, labels, strict=True):
        for channel, (mean, std) in enumerate(zip(IMAGE.mean, IMAGE.std, strict=True)):
            inside = ((int(label) + 1) / 255 - mean) / std
            is_black = torch.isclose(image[channel], torch.tensor(black[channel]))
            is_inside = torch.isclose(image[channel], torch.tensor(inside))
            assert bool((is_black ^ is_inside).all())
            found += int(is_black.sum())
    assert found > 1000


def test_an_epoch_shows_no_image_twice_and_leaves_a_small_last_batch_out() -> None:
    source = batches(count=10, size=4)
    assert source.steps == 2
    shown = [int(x) for step in range(2) for x in source.get("joint", 3, step)[1]]
    assert len(shown) == len(set(shown)) == 8
    assert set(shown) <= set(range(10))


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    source = batches(count=5, size=64)
    assert source.steps == 1
    assert sorted(source.get("joint", 0, 0)[1].tolist()) == [0, 1, 2, 3, 4]


def test_a_place_in_the_run_decides_the_batch() -> None:
    source = batches(count=40, size=10, crop_padding=2, flip=True)
    wanted = source.get("joint", 2, 1)
    # Whatever was asked for before, and in whichever object.
    for other in (("joint", 2, 0), ("gates", 2, 1), ("joint", 3, 1)):
        images, labels = source.get(*other)
        assert not torch.equal(labels, wanted[1])
        assert not torch.equal(images, wanted[0])
    for again in (source, batches(count=40, size=10, crop_padding=2, flip=True)):
        images, labels = again.get("joint", 2, 1)
        assert torch.equal(images, wanted[0])
        assert torch.equal(labels, wanted[1])
    assert not torch.equal(batches(40, 10, seed=1).get("joint", 2, 1)[1], wanted[1])


@pytest.mark.parametrize("augment", ["pad", "resized"])
def test_batches_of_larger_images(augment: str) -> None:
    data = numbered(30, side=10)
    image = ImageConfig(size=(8, 8), resize=10, mean=IMAGE.mean, std=IMAGE.std)
    config = DataConfig(image=image, augment=augment, crop_padding=0)  # type: ignore[arg-type]
    first, again = (Batches(data, config, 10, 0, CPU) for _ in range(2))
    for epoch, step in ((0, 0), (0, 2), (5, 1)):
        images, labels = first.get("joint", epoch, step)
        assert images.shape == (10, 3, 8, 8)
        assert torch.equal(again.get("joint", epoch, step)[0], images)
        # Each image has one value, and every crop is of it alone.
        value = ((labels + 1).float() / 255 - IMAGE.mean[0]) / IMAGE.std[0]
        torch.testing.assert_close(images[:, 0], value[:, None, None].expand(10, 8, 8))


# -- balance --------------------------------------------------------------------------------------


def uneven() -> torch.Tensor:
    return torch.tensor([0] * 70 + [1] * 25 + [3] * 5)


def test_each_class_is_drawn_equally_often() -> None:
    labels = uneven()
    order = balanced_order(labels, generator_at(0, "x"))
    assert len(order) == 100
    counts = torch.bincount(labels[order], minlength=4)
    assert counts[2] == 0
    assert sorted(counts.tolist()) == [0, 33, 33, 34]
    # Of a class, no image comes more often than the others but for once.
    for label in (0, 1, 3):
        times = torch.bincount(order, minlength=100)[labels == label]
        assert times.max() - times.min() <= 1
    assert torch.equal(order, balanced_order(labels, generator_at(0, "x")))
    assert not torch.equal(order, balanced_order(labels, generator_at(1, "x")))


def test_balanced_batches() -> None:
    data = numbered(100)
    names = tuple("abcd")
    data = ImageSet(data.images, uneven().numpy(), names, "Uneven", "train", "made up")
    config = DataConfig(image=IMAGE, balance="sample")
    source = Batches(data, config, 10, 0, CPU)
    for epoch in range(2):
        labels = torch.cat([source.get("joint", epoch, step)[1] for step in range(source.steps)])
        assert sorted(torch.bincount(labels).tolist()) == [0, 33, 33, 34]


def test_class_weights_are_inverse_frequencies() -> None:
    weights = class_weights(uneven(), 4)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[0] * 70) == pytest.approx(float(weights[1] * 25))
    assert float(weights[2] / 5) == pytest.approx(float(weights[3]))


def test_which_classes_are_rare() -> None:
    assert rare_classes({"a": 10, "b": 10, "c": 3}) == ["c"]
    assert rare_classes({"a": 10, "b": 9}) == rare_classes({}) == []


# -- randomness -----------------------------------------------------------------------------------


def test_derived_seeds_are_for_ever() -> None:
    """Half of BLAKE2b-64 of '0/order/joint/0' and so on; others would change every run."""
    assert derive_seed(0, "order", "joint", 0) == 5326095207669649562
    assert derive_seed(17, "augment", "backbone", 3, 250) == 2575345368371560757
    assert derive_seed(0) == 4246866556266386882


def test_derived_seeds_tell_places_apart() -> None:
    places = [(s, n, e, k) for s in range(3) for n in "ab" for e in range(5) for k in range(20)]
    seeds = {derive_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_a_generator_is_fresh_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    one, two = generator_at(5, "x"), generator_at(5, "x")
    assert torch.equal(torch.rand(8, generator=one), torch.rand(8, generator=two))
    assert one.initial_seed() == derive_seed(5, "x")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_square_of_each_image_is_blanked() -> None:
    images = torch.rand(40, 3, 9, 12) + 1
    erased = cutout(images, 4, torch.Generator().manual_seed(0))
    blank = erased == 0
    assert (erased[~blank] == images[~blank]).all()
    assert (blank[:, :1] == blank).all()  # the same square in every channel
    areas = blank[:, 0].flatten(1).sum(1)
    assert areas.max() == 16
    assert areas.min() >= 4  # a quarter is left where the centre lies in a corner
    for image in blank[:, 0]:
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        assert image.sum() == len(rows) * len(columns)
        assert rows[-1] - rows[0] + 1 == len(rows) <= 4
        assert columns[-1] - columns[0] + 1 == len(columns) <= 4
    assert torch.equal(cutout(images, 4, torch.Generator().manual_seed(0)), erased)


def test_no_side_erases_nothing() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert cutout(images, 0, torch.Generator()) is images
