import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from data_builders import arrays, cifar_binary, write, write_tar

from fracskip.data import cifar, fashion, layout
from fracskip.data.layout import Layout, md5_of
from fracskip.errors import DataError

MADE = arrays(10, 3, (32, 32, 3), 10)
FILES = cifar_binary(MADE, 1)
ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture
def tiny() -> Layout:
    return replace(cifar.CIFAR10_BINARY, md5s={}, digests={})


def test_archive_folder_and_loose_files_are_found(tiny: Layout, tmp_path: Path) -> None:
    packed = write_tar(tmp_path / "a" / ARCHIVE, tiny.folder, FILES)
    inner = write(tmp_path / "b" / tiny.folder, FILES)
    loose = write(tmp_path / "c", FILES)
    for place, found in ((packed.parent, packed), (inner.parent, inner), (loose, loose)):
        assert tiny.find(place) == found
        raw = tiny.read(place)
        assert (raw.arrays["train_images"] == MADE["train_images"]).all()
    (loose / "test_batch.bin").unlink()
    assert tiny.find(loose) is None
    with pytest.raises(DataError, match=r"holds no cifar-10-binary\.tar\.gz or data_batch_1\.bin"):
        tiny.read(loose)


def test_an_archive_without_a_member(tiny: Layout, tmp_path: Path) -> None:
    some = {name: content for name, content in FILES.items() if name != "data_batch_3.bin"}
    write_tar(tmp_path / ARCHIVE, tiny.folder, some)
    with pytest.raises(DataError, match=r"it lacks data_batch_3\.bin"):
        tiny.read(tmp_path)


def test_members_of_other_names_and_links_are_left_alone(tiny: Layout, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(FILES["test_batch.bin"])
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"{tiny.folder}/{name}")
            if name == "test_batch.bin":
                member.type, member.linkname = tarfile.SYMTYPE, str(secret)
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        escape = tarfile.TarInfo("../escaped")
        escape.size = 1
        tar.addfile(escape, io.BytesIO(b"!"))
    with pytest.raises(DataError, match=r"it lacks test_batch\.bin"):
        tiny.read(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, "secret"]
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("content", [b"", b"not packed at all", "half"])
def test_a_damaged_archive(content: bytes | str, tiny: Layout, tmp_path: Path) -> None:
    path = write_tar(tmp_path / ARCHIVE, tiny.folder, FILES)
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{ARCHIVE}(:| is damaged)"):
        tiny.read(tmp_path)


def test_an_archive_with_another_md5(tiny: Layout, tmp_path: Path) -> None:
    path = write_tar(tmp_path / ARCHIVE, tiny.folder, FILES)
    replace(tiny, md5s={ARCHIVE: md5_of(path.read_bytes())}).read(tmp_path)
    with pytest.raises(DataError, match=rf"the MD5 of {ARCHIVE} is .*, not 00"):
        replace(tiny, md5s={ARCHIVE: "00"}).read(tmp_path)


def test_a_loose_file_with_another_md5(tiny: Layout, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    with pytest.raises(DataError, match=r"the MD5 of test_batch\.bin is .*, not 00"):
        replace(tiny, md5s={"test_batch.bin": "00"}).read(tmp_path)


def test_arrays_with_another_digest(tiny: Layout, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    with pytest.raises(DataError, match=r"SHA-256 of the decoded test_labels is .*, not 00"):
        replace(tiny, digests={"test_labels": "00"}).read(tmp_path)


def test_a_label_without_a_class(tiny: Layout, tmp_path: Path) -> None:
    broken = bytearray(FILES["test_batch.bin"])
    broken[0] = 10
    write(tmp_path, {**FILES, "test_batch.bin": bytes(broken)})
    with pytest.raises(DataError, match="labels of CIFAR-10 run from 1 to 10"):
        tiny.read(tmp_path)


@pytest.mark.parametrize(
    ("packed", "limits", "words"),
    [
        (True, {"MAX_FILE_BYTES": 500_000}, rf"{ARCHIVE} holds more than 500,000 bytes"),
        (True, {"max_bytes": 100_000}, r"data_batch_1\.bin holds more than 100,000 bytes"),
        (False, {"max_bytes": 100_000}, r"data_batch_1\.bin holds more than 100,000 bytes"),
    ],
)
def test_a_file_of_absurd_size(
    packed: bool,
    limits: dict[str, int],
    words: str,
    tiny: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = {name: bytes(3073 * 40) for name in FILES}
    if packed:
        write_tar(tmp_path / ARCHIVE, tiny.folder, zeros)
    else:
        write(tmp_path, zeros)
    if "max_bytes" in limits:
        tiny = replace(tiny, **limits)
    else:
        monkeypatch.setattr(layout, "MAX_FILE_BYTES", limits["MAX_FILE_BYTES"])
    with pytest.raises(DataError, match=f"{words}: it is not the file meant"):
        tiny.read(tmp_path)


def test_the_real_files_are_within_their_limits() -> None:
    """Sizes as their homes give them: records of 3,073 and 3,074 bytes, IDX of 28 x 28."""
    assert cifar.CIFAR10_BINARY.max_bytes == 30_730_000
    assert cifar.CIFAR100_BINARY.max_bytes == 153_700_000
    assert fashion.FASHION_PLAIN.max_bytes == 47_040_016


def test_headers_without_end_in_an_archive(tiny: Layout, tmp_path: Path) -> None:
    """Each long name announces another; tarfile calls itself for each."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    block = member.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(block * 2000))
    with pytest.raises(DataError, match=rf"{ARCHIVE} is damaged or not in the layout of CIFAR-10"):
        tiny.read(tmp_path)


def test_an_unreadable_file(tiny: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, limit: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, FILES)
    monkeypatch.setattr(layout, "read_limited", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\): check that you"):
        tiny.read(tmp_path)
