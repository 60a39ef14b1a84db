import numpy as np
import pytest
import torch

from fracskip.config import DataConfig, ImageConfig
from fracskip.data import ImageSet
from fracskip.training.batches import Batches, augment, erase
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


# -- augment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_a_window_of_the_padded_image(channels: int, flip: bool) -> None:
    images = pixels(40, channels=channels)
    out = augment(images, 2, flip, generator_at(0, "test"))
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
    assert torch.equal(augment(images, 0, False, generator_at(0, "x")), images)


def test_a_flip_alone_mirrors_columns() -> None:
    images = pixels(30)
    out = augment(images, 0, True, generator_at(4, "x"))
    same = [torch.equal(a, b) for a, b in zip(images, out, strict=True)]
    turned = [torch.equal(a.flip(1), b) for a, b in zip(images, out, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 5 < sum(turned) < 25


def test_one_image_of_one_pixel() -> None:
    out = augment(pixels(1, 1, 1, 1), 1, True, generator_at(0, "x"))
    assert out.shape == (1, 1, 1, 1)


def test_the_generator_decides() -> None:
    images = pixels(20)
    first = augment(images, 2, True, generator_at(1, "a"))
    assert torch.equal(first, augment(images, 2, True, generator_at(1, "a")))
    assert not torch.equal(first, augment(images, 2, True, generator_at(1, "b")))
    assert not torch.equal(first, augment(images, 2, True, generator_at(2, "a")))


# -- batches --------------------------------------------------------------------------------------

IMAGE = ImageConfig(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def numbered(count: int) -> ImageSet:
    """Images of one grey value each, its number + 1; the label is the number."""
    values = np.arange(1, count + 1, dtype=np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(values[:, None, None, None], (count, 8, 8, 3)))
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
    erased = erase(images, 4, torch.Generator().manual_seed(0))
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
    assert torch.equal(erase(images, 4, torch.Generator().manual_seed(0)), erased)


def test_no_side_erases_nothing() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert erase(images, 0, torch.Generator()) is images
