import hashlib
import io
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from fracskip.data import fetch
from fracskip.errors import DataError

URL = "https://example.org/things.tar.gz"
CONTENT = bytes(range(256)) * 100
MD5 = hashlib.md5(CONTENT).hexdigest()


class Answer(io.BytesIO):
    def __init__(self, content: bytes, length: str | None) -> None:
        super().__init__(content)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = length


def answer(monkeypatch: pytest.MonkeyPatch, result: Exception | Answer) -> list[float]:
    timeouts = []

    def urlopen(url: str, timeout: float) -> Answer:
        assert url == URL
        timeouts.append(timeout)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return timeouts


@pytest.mark.parametrize("length", [str(len(CONTENT)), None])
def test_a_download(length: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1000)
    timeouts = answer(monkeypatch, Answer(CONTENT, length))
    said: list[str] = []
    fetch.download(URL, tmp_path / "things", MD5, said.append)
    assert (tmp_path / "things").read_bytes() == CONTENT
    assert timeouts == [fetch.TIMEOUT_S]
    assert said[0] == f"downloading {URL}"
    assert len(said) == (11 if length else 1)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (urllib.error.URLError("no route to host"), "no route to host"),
        (TimeoutError("timed out"), "timed out"),
        (urllib.error.HTTPError(URL, 404, "Not Found", Message(), None), "Not Found"),
        (Answer(CONTENT, "many"), "cannot be downloaded"),
        (Answer(CONTENT[:-1], str(len(CONTENT))), f"answered 25599 bytes with MD5 .*, not {MD5}"),
        (Answer(b"<html>please log in</html>", None), "answered 26 bytes"),
    ],
    ids=["no route", "timeout", "not found", "no length", "cut off", "a page"],
)
def test_a_download_that_fails(
    result: Exception | Answer, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer(monkeypatch, result)
    with pytest.raises(DataError, match=f"{URL} .*{words}"):
        fetch.download(URL, tmp_path / "things", MD5, print)


def test_a_download_without_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 1000)
    answer(monkeypatch, Answer(CONTENT, None))
    with pytest.raises(DataError, match="sends more than"):
        fetch.download(URL, tmp_path / "things", MD5, print)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path where a script can be put that is then found as npm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / "npm"


def install(npm: Path, script: str) -> None:
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)


def test_npm(npm: Path, tmp_path: Path) -> None:
    install(npm, 'echo "$@" > packed.tgz')
    fetch.npm_pack("thing@1.0", tmp_path, print)
    assert (tmp_path / "packed.tgz").read_text() == "pack thing@1.0 --ignore-scripts --silent\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo code E404 >&2; exit 1", r"npm pack thing@1\.0 failed \(code E404\)"),
        ("exit 3", "it said nothing"),
        ("exec /bin/sleep 5", "timed out"),
        (None, "npm is not on the PATH"),
    ],
)
def test_npm_that_fails(
    script: str | None,
    words: str,
    npm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "NPM_TIMEOUT_S", 0.3)
    if script is not None:
        install(npm, script)
    with pytest.raises(DataError, match=words):
        fetch.npm_pack("thing@1.0", tmp_path, print)
