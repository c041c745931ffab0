"""Unpack archives of videos into the cache folder, once: one process unpacks while the others wait.

    CACHE/unpacked/<key>/<archive>/<name>.mp4   the videos
    CACHE/unpacked/<key>/index.jsonl            a manifest of them

The key is a hash of the archive's path, size and times. Deleting a folder is always safe.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from arvid.data._kept_tables import TableFile
from arvid.errors import UserError
from arvid.files import cache_dir, sha256_json


@dataclass(frozen=True)
class Sample:
    """A video inside an archive."""

    name: str
    """Path in the archive, with forward slashes and a video ending."""
    content: bytes
    row: dict[str, Any]
    """Its columns of a manifest."""


def unpack(archives: Sequence[Path], read: Callable[[Path], Iterator[Sample]]) -> list[TableFile]:
    """The manifest of each archive. An archive that is not in the cache is unpacked by `read`.

    Raises UserError if one cannot be read, or there is no space for its videos.
    """
    progress = tqdm(archives, "unpacking videos", unit="archive", delay=1, disable=None)
    return [_unpack(archive, read) for archive in progress]


def _unpack(archive: Path, read: Callable[[Path], Iterator[Sample]]) -> TableFile:
    try:
        folder = cache_dir() / "unpacked" / sha256_json(TableFile(archive).state())[:24]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(archive, folder, read)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise UserError(
            f"{archive} cannot be unpacked into {cache_dir()}: {error}. Set ARVID_CACHE to another folder."
        ) from error
    return TableFile(folder / "index.jsonl", f"{os.path.abspath(folder / archive.stem)}/")


def _write(archive: Path, folder: Path, read: Callable[[Path], Iterator[Sample]]) -> None:
    """Write everything into a temporary folder beside it, then rename that folder."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    try:
        with (temporary / "index.jsonl").open("w", encoding="utf-8") as index:
            for sample in read(archive):
                path = temporary / archive.stem / _inside(archive, sample.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sample.content)
                row = {k: v for k, v in sample.row.items() if isinstance(v, (str, int, float))}
                index.write(json.dumps({**row, "path": sample.name}) + "\n")
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: the name {name!r} leads out of the archive.")
    return path
