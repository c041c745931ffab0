"""Videos in tar archives of WebDataset or video2dataset."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import logging
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from arvid.data._files import FileDataset, FileOptions, named
from arvid.data._kept_tables import read_entries
from arvid.data._names import is_utf8
from arvid.data._unpacked import Sample, unpack
from arvid.data._walk import SUFFIXES, LeftOut
from arvid.data.clips import ClipSpec
from arvid.errors import UserError
from arvid.files import cache_dir

logger = logging.getLogger(__name__)

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of the archives in a folder, in any case."""
TEXTS = {".json": "", ".txt": "caption", ".cls": "label"}
"""Endings of a sample's text files, and the column in each. A .json file has several columns."""
_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a compressed archive -> the function that opens it."""

Members = dict[str, tarfile.TarInfo]
"""Ending -> file of a sample."""


class WebDataset(FileDataset):
    """Clips of the samples of tar archives; item i is a pure function of (seed, i).

    A sample is the files of an archive with the same name up to the first dot: KEY.mp4 (or another video), and
    optionally KEY.txt with the caption, KEY.cls with the class, and KEY.json with the columns of a manifest (see
    `arvid.data.manifest.VideoManifest`). The files of a sample need not be adjacent, and may be links to other files.
    The log counts what is left out. Archives are unpacked once into the cache folder, which needs as much space again
    (ARVID_CACHE sets another folder).

    Args:
        path: an archive, a folder of archives, or a pattern: shards/{000..127}.tar, shards/*.tar.
        clip: how clips are cut (17 frames of 64x64 by default).
        columns: keys of the .json files with other names than a manifest's columns, as meaning: key.
        options: see `arvid.data._files.FileOptions`.

    Raises:
        UserError: an archive does not exist or cannot be read, or no video is left.
    """

    def __init__(
        self,
        path: str,
        clip: ClipSpec | None = None,
        *,
        columns: dict[str, str | None] | None = None,
        **options: Any,
    ) -> None:
        common = FileOptions(clip=clip or ClipSpec(), **options)
        entries = read_entries(unpack(find_archives(str(path)), read_archive), Path(), columns)
        super().__init__(entries, common, where=str(path), classes=entries.classes)


def find_archives(pattern: str) -> list[Path]:
    """The archives of a path or pattern, sorted by name. Raises UserError if there is none.

    The log names those that are missing.
    """
    if os.path.isdir(pattern):
        found = [path for path in sorted(Path(pattern).iterdir()) if _is_archive(path.name)]
    else:
        by_part = {part: sorted(glob.glob(part)) for part in expand_braces(pattern)}
        found = [Path(path) for paths in by_part.values() for path in paths]
        if missing := [part for part, paths in by_part.items() if not paths and found]:
            logger.warning(
                "%s: %d archives do not exist: %s", pattern, len(missing), named(missing)
            )
    if not found:
        raise UserError(f"{pattern}: there is no tar archive. Give one, a folder or a pattern.")
    return found


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def expand_braces(pattern: str) -> list[str]:
    """Expand "shard-{08..10}.tar" to its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    whole = (pattern[: match.start()] + number + pattern[match.end() :] for number in numbers)
    return [name for start in whole for name in expand_braces(start)]


def read_archive(path: Path) -> Iterator[Sample]:
    """The samples of an archive, in the order of their first files. The log counts what is left out.

    Raises UserError if the archive is damaged.
    """
    left_out = LeftOut()
    try:
        with _decompressed(path) as file, tarfile.open(fileobj=file) as archive:
            for key, members in _by_key(archive, left_out).items():
                yield from _sample(path, archive, key, members, left_out)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # An OSError with a number is not about the content: a full disk, for example.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is no tar archive, or truncated: {error}.") from error
    left_out.report(path)


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    """The archive, decompressed into a temporary file. Seeking back in a compressed file reads it anew."""
    with path.open("rb") as file:
        first = file.read(8)
        file.seek(0)
        open_ = next((o for begin, o in _COMPRESSED.items() if first.startswith(begin)), None)
        if open_ is None:
            yield file
            return
        cache_dir().mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=cache_dir()) as copy, open_(file) as content:
            shutil.copyfileobj(content, copy, 2**20)
            copy.seek(0)
            yield copy


def _by_key(archive: tarfile.TarFile, left_out: LeftOut) -> dict[str, Members]:
    """The files of each sample by their endings."""
    found: dict[str, Members] = {}
    for member in archive:
        folder, name = os.path.split(member.name.replace("\\", "/"))  # as Windows writes it
        if not (member.isfile() or member.islnk() or member.issym()) or name.startswith("."):
            continue
        if not is_utf8(member.name):
            left_out.reasons["names that are not UTF-8 (rename them)"] += 1
            continue
        stem, _, ending = name.partition(".")
        members = found.setdefault(os.path.join(folder, stem), {})
        if f".{ending.lower()}" in members:
            left_out.reasons["files with the name of an earlier file"] += 1
        else:
            members[f".{ending.lower()}"] = member
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """The content of a file. None for a link to itself, or to a file outside the archive."""
    try:
        file = archive.extractfile(member)
    except (KeyError, RecursionError):
        return None
    return None if file is None else file.read()


def _sample(
    path: Path, archive: tarfile.TarFile, key: str, members: Members, left_out: LeftOut
) -> Iterator[Sample]:
    """Yield a sample; nothing if its files hold no video."""
    endings = [ending for ending in members if ending.endswith(SUFFIXES)]
    if not endings:
        left_out.reasons["samples without a video"] += 1
        return
    left_out.reasons["further videos of a sample"] += len(endings) - 1
    content = _content(archive, members[endings[0]])
    if content is None:
        left_out.reasons["links to no file of the archive"] += 1
        return
    row = _row(path, key, {e: _content(archive, members[e]) for e in TEXTS if e in members})
    suffix = endings[0].rpartition(".")[2]
    yield Sample(f"{key}.{suffix}", content, row)


def _row(path: Path, key: str, files: dict[str, bytes | None]) -> dict[str, Any]:
    """A sample's columns of a manifest, from its text files. Raises UserError if one is unreadable."""
    try:
        row: dict[str, Any] = json.loads(files.pop(".json", None) or b"{}")
        texts = {name: (text or b"").decode("utf-8-sig").strip() for name, text in files.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the text files of {key} cannot be read: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: {key}.json is not a JSON object.")
    return row | {TEXTS[ending]: text for ending, text in texts.items()}
