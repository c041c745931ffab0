"""Videos in tar archives of WebDataset or video2dataset."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arvid.data._files import FileDataset, FileOptions
from arvid.data._kept_tables import read_entries
from arvid.data._unpacked import Sample, unpack
from arvid.data._walk import SUFFIXES
from arvid.data.clips import ClipSpec
from arvid.errors import UserError


class WebDataset(FileDataset):
    """Clips of the samples of tar archives; item i is a pure function of (seed, i).

    A sample is the files of an archive with the same name up to the first dot: KEY.mp4 (or another video), and
    optionally KEY.txt with the caption, KEY.cls with the class, and KEY.json with the columns of a manifest (see
    `arvid.data.manifest.VideoManifest`). Archives are unpacked once into the cache folder, which needs their size again
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
    """The archives of a path or pattern, sorted by name. Raises UserError if there is none."""
    if os.path.isdir(pattern):
        pattern = f"{glob.escape(pattern)}/*.tar"
    found = [Path(p) for part in expand_braces(pattern) for p in sorted(glob.glob(part))]
    if not found:
        raise UserError(f"{pattern}: there is no tar archive. Give one, a folder or a pattern.")
    return found


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
    """The samples of an archive. The files of a sample must be adjacent. Raises UserError if it is damaged."""
    key = ""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                stem, _, ending = name.partition(".")
                if os.path.join(folder, stem) != key:
                    yield from _sample(path, key, files)
                    key, files = os.path.join(folder, stem), {}
                files[f".{ending.lower()}"] = _content(archive, member)
        yield from _sample(path, key, files)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is no tar archive, or truncated: {error}.") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _sample(path: Path, key: str, files: dict[str, bytes]) -> Iterator[Sample]:
    """Yield a sample; nothing if its files hold no video."""
    endings = [ending for ending in files if ending.endswith(SUFFIXES)]
    if not endings:
        return
    try:
        row: dict[str, Any] = json.loads(files.get(".json", b"{}"))
        texts = {
            name: files[f".{name}"].decode("utf-8").strip()
            for name in ("txt", "cls")
            if f".{name}" in files
        }
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the text files of {key} cannot be read: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: {key}.json is not a JSON object.")
    named = {"txt": "caption", "cls": "label"}
    row |= {named[name]: text for name, text in texts.items()}
    suffix = endings[0].rpartition(".")[2]
    yield Sample(f"{key}.{suffix}", files[endings[0]], row)
