"""Downloads from a server on this machine."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid.downloading import download, has_checksum
from arvid.errors import UserError

CONTENT = np.random.default_rng(0).bytes(50_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def names(folder: Path) -> list[str]:
    """Files of a folder, but for locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_download_goes_on_where_it_stopped(web: Any, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:20_000])
    url, path = web.url("data.zip", CONTENT), tmp_path / "data.zip"
    for _ in range(2):
        download(url, path, checksum=CHECKSUM, num_bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert web.asked == ["bytes=20000-"]
    assert names(tmp_path) == ["data.zip"]


def test_several_that_want_a_file_download_it_once(web: Any, tmp_path: Path) -> None:
    url, path = web.url("data.zip", CONTENT), tmp_path / "data.zip"
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(download, url, path, checksum=CHECKSUM) for _ in range(3)]:
            done.result()
    assert path.read_bytes() == CONTENT
    assert web.asked == [None]


def test_a_download_of_another_content_leaves_nothing(web: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the published file: its checksum is not md5:00"):
        download(web.url("data.gz", CONTENT), tmp_path / "data.gz", checksum=f"md5:{'0' * 32}")
    assert names(tmp_path) == []


def test_a_file_that_is_there_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "data.gz").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"not the published file.*Delete it"):
        download("http://127.0.0.1:1/data.gz", tmp_path / "data.gz", checksum=CHECKSUM)
    assert names(tmp_path) == ["data.gz"]


def test_an_absent_file_leaves_nothing(web: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent cannot be downloaded \(.*404"):
        download(web.url("absent"), tmp_path / "absent", checksum=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "checksum",
    [
        "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "md5:b1946ac9",
        "git-blob:ce013625030ba8dba906f756967f9e9ca394464a",  # as git hash-object prints it
    ],
)
def test_checksums(checksum: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert has_checksum(tmp_path / "x", checksum)
    (tmp_path / "x").write_bytes(b"hello")
    assert not has_checksum(tmp_path / "x", checksum)
