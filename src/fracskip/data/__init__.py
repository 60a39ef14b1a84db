"""Data sets: acquired once into a cache, verified whenever they are read, uint8 throughout."""

from fracskip.data.again import find_again, keys_of
from fracskip.data.catalog import DATASETS, DatasetSummary, acquire
from fracskip.data.containers import SUFFIXES
from fracskip.data.dataset import central, load_split
from fracskip.data.decode import decode_image
from fracskip.data.decoding import Progress
from fracskip.data.folder import class_counts, load_folder
from fracskip.data.imageset import ImageSet, split_validation
from fracskip.data.sample import load_sample
from fracskip.data.store import cache_dir

__all__ = [
    "DATASETS",
    "SUFFIXES",
    "DatasetSummary",
    "ImageSet",
    "Progress",
    "acquire",
    "cache_dir",
    "central",
    "class_counts",
    "decode_image",
    "find_again",
    "keys_of",
    "load_folder",
    "load_sample",
    "load_split",
    "split_validation",
]
