"""Sources of datasets: downloads from a local server, archives, and faults of both."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.prepare.downloading import download
from arvid.data.prepare.facts import DATASETS, Remote
from arvid.data.prepare.sources import ARCHIVES, unpacked

CONTENT = np.random.default_rng(0).bytes(50_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT under any name, or the requested end of it."""

    asked: list[str | None] = []  # noqa: RUF012  # class attribute, because each request makes an object

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is for the test."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_goes_on_where_it_stopped(address: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:20_000])
    remote = Remote(url=f"{address}/x/data.zip", checksum=CHECKSUM, num_bytes=len(CONTENT))
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert download(remote, tmp_path) == tmp_path / "data.zip"
    assert Handler.asked == ["bytes=20000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_a_download_of_another_content_is_refused(address: str, tmp_path: Path) -> None:
    remote = Remote(url=f"{address}/data.gz", checksum="md5:00000000000000000000000000000000")
    with pytest.raises(UserError, match=r"its md5 is .* Delete it"):
        download(remote, tmp_path)
    assert not (tmp_path / "data.gz").exists()


def test_a_file_that_is_there_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "data.gz").write_bytes(b"cut off")
    with pytest.raises(UserError, match="damaged or another file"):
        download(Remote(url="http://127.0.0.1:1/data.gz", checksum=CHECKSUM), tmp_path)


def test_published_checksums_are_digests() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for remote in (remote for facts in DATASETS for remote in facts.remotes):
        if remote.checksum is not None:
            algorithm, _, digest = remote.checksum.partition(":")
            assert len(bytes.fromhex(digest)) * 2 == lengths[algorithm], remote.url


@pytest.mark.parametrize("ending", [ending for ending in ARCHIVES if ending != ".rar"])
def test_archives_that_cannot_be_read_are_named(ending: str, tmp_path: Path) -> None:
    archive = tmp_path / f"UCF101{ending}"
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacked(archive, tmp_path / "out")
    assert not list((tmp_path / "out/unpacked").iterdir())


def test_rar_without_a_program_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="none of bsdtar, unrar, 7z is installed"):
        unpacked(tmp_path / "UCF101.rar", tmp_path / "out")


def test_rar_by_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes its arguments replaces unrar."""
    program = tmp_path / "unrar"
    program.write_text('#!/bin/sh\necho "$1 $3" > "$4/arguments.txt"\n')
    program.chmod(0o755)
    archive = tmp_path / "UCF101.rar"
    archive.write_bytes(b"Rar!")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = unpacked(archive, tmp_path / "out")
    assert (found / "UCF101/arguments.txt").read_text() == f"x {archive}\n"


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("ucf101", {"a.mp4": b""}, "holds no videos"),
        ("kinetics600", {"a.mp4": b""}, "holds no train.csv"),
        ("kinetics600", {"a.mp4": b"", "train.csv": b"label,id\nx,y\n"}, "has no column"),
        ("moving-mnist", {"a.txt": b""}, "holds neither train-images"),
        ("moving-mnist", {"train-images-idx3-ubyte": b"\0\0\x08\x01"}, "is no idx file"),
        ("moving-mnist", {"mnist.npz": b"PK"}, "is no copy of MNIST"),
        ("bair", {"bair.tar": b"no archive"}, "cannot be read"),
        ("sky", {"a.mp4": b""}, "holds no videos"),
        ("folder", {"a.mp4": b""}, "None of 1 clips"),
    ],
)
def test_sources_of_something_else(
    dataset: str,
    files: dict[str, bytes],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    assert main(["data", dataset, str(tmp_path / "out"), "--source", str(source)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize("dataset", [facts.name for facts in DATASETS])
def test_sources_that_are_not_there(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", dataset, str(tmp_path / "out"), "--source", str(tmp_path / "no")]) == 2
    assert str(tmp_path / "no") in capsys.readouterr().err
