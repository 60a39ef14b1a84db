import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builders import raw_set

from fracskip.data import imageset, store
from fracskip.errors import DataError


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_what_is_saved_is_loaded(cache: Path) -> None:
    raw = raw_set()
    assert store.save("tiny", raw) == cache / "tiny"
    assert entries(cache) == ["tiny"]
    for split in ("train", "test"):
        loaded = store.load("tiny", split)
        np.testing.assert_array_equal(loaded.images, raw.arrays[f"{split}_images"])
        np.testing.assert_array_equal(loaded.labels, raw.arrays[f"{split}_labels"])
        assert (loaded.name, loaded.split, loaded.source) == ("Tiny", split, "made up")
        assert loaded.images.flags.writeable


def test_the_layout_of_the_cache_is_fixed(cache: Path) -> None:
    folder = store.save("tiny", raw_set())
    assert entries(folder) == [
        "manifest.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest) == ["schema_version", "name", "title", "source", "class_names", "arrays"]
    assert manifest["schema_version"] == 1
    assert manifest["arrays"]["test_labels"] == {
        "shape": [4],
        "dtype": "int64",
        "sha256": store.digest(np.array([0, 1, 0, 1])),
    }


def test_digests_do_not_depend_on_layout_or_byte_order() -> None:
    array = np.arange(6).reshape(2, 3)
    assert store.digest(array) == store.digest(np.asfortranarray(array))
    assert store.digest(array) == store.digest(array.astype(">i8"))


@pytest.mark.parametrize("key", store.ARRAYS)
def test_a_flipped_bit_is_detected(key: str) -> None:
    path = store.save("tiny", raw_set()) / f"{key}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{key}\.npy is damaged \(its SHA-256.*fracskip data tiny"
    ):
        store.load("tiny", key.split("_")[0])


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (trap,))

    path = store.save("tiny", raw_set()) / "test_images.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"test_images\.npy is damaged"):
        store.load("tiny", "test")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 an archive", "is damaged"),
        (None, "is damaged .*No such file"),
    ],
)
def test_a_file_that_is_no_array_is_refused(content: bytes | None, words: str) -> None:
    path = store.save("tiny", raw_set()) / "test_labels.npy"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        store.load("tiny", "test")


def test_a_truncated_array_is_refused() -> None:
    path = store.save("tiny", raw_set()) / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train_images\.npy is damaged"):
        store.load("tiny", "train")


def test_an_array_of_another_shape_is_refused() -> None:
    path = store.save("tiny", raw_set()) / "train_labels.npy"
    np.save(path, np.zeros(9, dtype=np.int64))
    with pytest.raises(DataError, match=r"it holds int64 \(9,\), not int64 \(8,\)"):
        store.load("tiny", "train")


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"schema_version": 2}', "\xff", "{" * 2000], ids=str.__len__
)
def test_a_manifest_that_cannot_be_understood_is_refused(content: str) -> None:
    path = store.save("tiny", raw_set()) / "manifest.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json is damaged") as caught:
        store.load("tiny", "test")
    assert "\n" not in str(caught.value)


def test_a_manifest_without_an_array_is_refused() -> None:
    path = store.save("tiny", raw_set()) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["arrays"]["test_images"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the manifest does not list it"):
        store.load("tiny", "test")


def test_a_data_set_that_is_not_there_says_how_to_get_it() -> None:
    assert store.read_manifest("tiny") is None
    with pytest.raises(DataError, match=r"tiny is not in the cache .* run `fracskip data tiny`"):
        store.load("tiny", "test")


def test_a_set_that_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store.save("tiny", raw_set())
    monkeypatch.setattr(imageset, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="Tiny would take"):
        store.load("tiny", "train")


@pytest.mark.parametrize("before", [False, True], ids=["empty cache", "older copy"])
def test_a_failure_midway_leaves_the_cache_as_it_was(
    before: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        store.save("tiny", raw_set(title="Older"))
    real_save, calls = np.save, []

    def failing(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real_save(*args, **kwargs)

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(DataError, match=r"cannot be written.*No space left.*FRACSKIP_CACHE"):
        store.save("tiny", raw_set(title="Newer"))
    assert entries(cache) == (["tiny"] if before else [])
    if before:
        assert store.load("tiny", "train").name == "Older"


def test_an_interruption_leaves_no_half_copy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save("tiny", raw_set())
    assert entries(cache) == []


def test_saving_again_replaces(cache: Path) -> None:
    store.save("tiny", raw_set())
    store.save("tiny", replace(raw_set(size=6), title="Newer"))
    assert entries(cache) == ["tiny"]
    assert store.load("tiny", "test").images.shape == (4, 6, 6, 3)
    assert store.load("tiny", "test").name == "Newer"


def test_a_cache_that_is_a_file_is_refused(cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        store.save("tiny", raw_set())


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/a/b", "/c", "/a/b"),
        (None, "/c", "/c/fracskip"),
        ("", "", "/home/someone/.cache/fracskip"),
        (None, None, "/home/someone/.cache/fracskip"),
        ("~/data", None, "/home/someone/data"),
    ],
)
def test_where_the_cache_is(
    own: str | None, shared: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for variable, value in (("FRACSKIP_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    assert store.cache_dir() == Path(expected)
