"""Unpack archives of videos into the cache folder, once: one process unpacks while the others wait.

    CACHE/unpacked/<key>/<archive>/<name>.mp4   the videos
    CACHE/unpacked/<key>/index.jsonl            a manifest of them

The key is a hash of the archive's path, size and times, and of `_VERSION`. Deleting a folder is always safe.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from arvid.data._columns import must_be_plain
from arvid.data._kept_tables import TableFile
from arvid.errors import UserError
from arvid.files import cache_dir, sha256_json

_VERSION = 2
"""Version of the unpacked content. An archive that another version unpacked is unpacked again."""
_NO_FILE_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""Errors of a name that cannot be a file: it is too long, or another video has it as its folder."""


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
        key = sha256_json([_VERSION, TableFile(archive).state()])[:24]
        folder = cache_dir() / "unpacked" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(archive, folder, read)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise UserError(
            f"{archive} cannot be unpacked into {cache_dir()}: {error}. Set ARVID_CACHE to another folder."
        ) from error
    prefix = f"{os.path.abspath(folder / archive.stem)}/"
    return TableFile(folder / "index.jsonl", prefix, unpacked_from=archive)


def _write(archive: Path, folder: Path, read: Callable[[Path], Iterator[Sample]]) -> None:
    """Write everything into a temporary folder beside it, then rename that folder."""
    temporary = folder.with_name(f".unpacking-{folder.name}")
    shutil.rmtree(
        temporary, ignore_errors=True
    )  # left by a killed process: this process has the lock
    temporary.mkdir()
    try:
        with (temporary / "index.jsonl").open("w", encoding="utf-8") as index:
            for sample in read(archive):
                name = _write_video(temporary / archive.stem, archive, sample)
                # Columns that are not kept are null. So the reader of the manifest reports them as unread.
                row = {k: v if _is_kept(k, v) else None for k, v in sample.row.items()}
                index.write(json.dumps({**row, "path": name}, default=str) + "\n")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_video(folder: Path, archive: Path, sample: Sample) -> str:
    """Write the video. Returns its path inside the folder: its name, or a hash if that name cannot be a file."""
    name = _inside(archive, sample.name).as_posix()
    try:
        _write_file(folder / name, sample.content)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        if isinstance(error, OSError) and error.errno not in _NO_FILE_NAME:
            raise
        short = f"{sha256_json(name)[:24]}{PurePosixPath(name).suffix}"
        _write_file(folder / short, sample.content)
        return short
    return sample.name


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _is_kept(column: str, value: Any) -> bool:
    """Whether a value is written. Lists and objects are written only for columns where reading them is an error."""
    return isinstance(value, (str, int, float)) or (
        isinstance(value, (list, dict)) and must_be_plain(column)
    )


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: the name {name!r} leads out of the archive.")
    return path
