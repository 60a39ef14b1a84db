"""The images that a record was measured on, found again by their digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from fracskip.config import ImageConfig
from fracskip.data import store
from fracskip.data.catalog import ENTRIES
from fracskip.data.dataset import load_split
from fracskip.data.imageset import ImageSet
from fracskip.data.sample import SAMPLE


def find_again(
    title: str, split: str, digest: str, count: int, image: ImageConfig, given: str = ""
) -> ImageSet | None:
    """The set of images that has a digest: the bundled sample, one of the cache, or a given one.

    Args:
        title: The set's display name.
        split: 'train', or else the test split is searched.
        digest: SHA-256 of its images as the network took them, in hexadecimal.
        count: How many images it has; of a larger set so many, evenly spaced, are tried.
        image: Their size and channels.
        given: A further data set to search, as recipes name it, such as folder:PATH.

    Returns:
        The images; None if no set at hand has the digest.

    Raises:
        DataError: if a set cannot be read.
    """
    part: Literal["train", "test"] = "train" if split == "train" else "test"
    for name in (*_at_hand(title), *([given] if given else [])):
        found = load_split(name, part, image, on_corrupt="skip").evenly(count)
        if store.digest(found.images) == digest:
            return found
    return None


def keys_of(title: str) -> tuple[str, ...]:
    """The data sets that may have a title, as recipes name them.

    >>> keys_of("CIFAR-10"), keys_of("holiday")
    (('cifar10',), ())
    """
    layouts = {name: entry.layouts for name, entry in ENTRIES.items()}
    return tuple(name for name in layouts if title in {each.title for each in layouts[name]})


def _at_hand(title: str) -> Iterator[str]:
    if title == SAMPLE:
        yield "sample"
    for name in keys_of(title):
        manifest = store.read_manifest(name)
        if manifest is not None and manifest.title == title:
            yield name
