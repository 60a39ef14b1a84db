"""A file is the old one or the new one: on a full disk, in a bad folder, at any moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fracskip import files
from fracskip.checkpoint import load, save
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import CheckpointError

# No write beyond 8 KiB succeeds: what a full disk does, without needing one.
ON_A_FULL_DISK = """
import resource, sys
from fracskip.checkpoint import load, save
from fracskip.errors import CheckpointError
net = load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    save(net, sys.argv[2], notes={"new": True})
except CheckpointError as error:
    print(error)
else:
    print("it was written")
"""


def test_a_full_disk_leaves_the_old_file(checkpoint_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "net.safetensors"
    before = checkpoint_file.read_bytes()
    target.write_bytes(before)
    found = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, checkpoint_file, target],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.stdout == (
        f"{target} could not be written (File too large); what was there before is unchanged: "
        "free some space or choose another folder, then resume\n"
    )
    assert found.stderr == ""
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(
    net: DynamicNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "net.safetensors"
    target.write_bytes(b"the old one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        save(net, target)
    assert target.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_new_file_replaces_the_old_one(net: DynamicNetwork, tmp_path: Path) -> None:
    target = tmp_path / "net.safetensors"
    save(net, target, notes={"number": 1})
    with torch.no_grad():
        net.backbone.fc.bias.fill_(2.5)
    save(net, target, notes={"number": 2})
    again = load(target)
    assert again.notes == {"number": 2}
    assert again.backbone.fc.bias.tolist() == [2.5] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (done.append("fsync"), fsync(number)))

    def watched(self: Path, target: Path) -> Path:
        done.append("replace")
        assert self.read_bytes() == b"new"
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    files.write_atomically(tmp_path / "x", b"new")
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize(
    "target",
    [
        "/proc/fracskip/net.safetensors",  # no folder can be made there, not even by root
        "file/net.safetensors",
        "file/deeper/net.safetensors",
        "folder",
        "x" * 300,
    ],
)
def test_a_place_that_cannot_be_written(net: DynamicNetwork, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("kept")
    with pytest.raises(CheckpointError, match=r"could not be written .*choose another folder"):
        save(net, tmp_path / target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inside"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(net: DynamicNetwork, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"Permission denied.*choose another folder"):
        save(net, tmp_path / "locked" / "net.safetensors")
