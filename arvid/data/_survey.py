"""Probe and hash the files of a dataset before it is used: once for all processes, with a cache on disk.

A file with a known path, size and change times is not read again. Its cached probe has a hash of the content, so a
replaced file is noticed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from arvid.data._decoding import MAX_PIXELS, VideoError
from arvid.data._layout import Probe
from arvid.data._ledger import Ledger
from arvid.data._probing import probe_video
from arvid.data.pictures import frame_files, is_pictures, probe_pictures
from arvid.files import cache_dir

logger = logging.getLogger(__name__)

_VERSION = 3  # of probing: part of the ledger's keys
WHOLE = 2**20
"""Largest file, in bytes, that is hashed whole."""
ENDS, BLOCK, NUM_BLOCKS = 2**17, 2**14, 16
"""Hashed parts of a larger file: ENDS bytes at both ends, and between them NUM_BLOCKS evenly spaced blocks."""

T = TypeVar("T")


class Named(Protocol):
    """A file of a dataset and its name in the dataset."""

    @property
    def path(self) -> Path:
        """Path of the file."""

    @property
    def name(self) -> str:
        """Name in the dataset, for messages."""


def probe_files(
    entries: Iterable[Named], *, max_pixels: int = MAX_PIXELS
) -> tuple[dict[Path, Probe], dict[str, str]]:
    """Probe every file that is not in the cache: probes by path, and reasons for unreadable files by name.

    One process probes; others that start at the same time wait and read its results. Failures are not cached, because a
    file can become readable without a change (permissions).
    """
    names = {entry.path: entry.name for entry in entries}
    path = cache_dir() / "probes.jsonl"
    probes = _remembered(Ledger(path), names)
    failed: dict[Path, VideoError] = {}
    if len(probes) < len(names):
        with _alone(path.with_suffix(".lock")):
            ledger = Ledger(path)  # another process may have looked in the meantime
            probes = _remembered(ledger, names)
            unknown = [path for path in names if path not in probes]
            for path, found in _in_parallel(lambda p: _look(p, max_pixels), unknown, "videos"):
                if isinstance(found, VideoError):
                    failed[path] = found
                else:
                    probes[path] = found
                    ledger.add(file_key(path), dataclasses.asdict(found))
    broken = {names[path]: error.reason for path, error in failed.items()}
    for path, probe in list(probes.items()):
        if probe.height * probe.width > max_pixels:
            broken[names[path]] = (
                f"its frames of {probe.height}x{probe.width} have more than {max_pixels:,} pixels"
            )
            del probes[path]
    return probes, broken


def contents(paths: Sequence[Path]) -> dict[Path, str]:
    """Hashes of the files' contents. Those of unchanged files come from the cache."""
    ledger = Ledger(cache_dir() / "contents.jsonl")
    known = {path: ledger.get(file_key(path)) for path in dict.fromkeys(paths)}
    unknown = [path for path, value in known.items() if not isinstance(value, str)]
    for path, value in _in_parallel(content_hash, unknown, "contents"):
        known[path] = value
        ledger.add(file_key(path), value)
    return known


def content_hash(path: Path) -> str:
    """Hash of a file's size and content: all of a small file; head, tail and sampled blocks of a large one.

    For a folder of frames, the hash of its pictures' hashes in order.
    """
    if path.is_dir():
        found = "".join(content_hash(file) for file in frame_files(path))
        return hashlib.sha256(found.encode()).hexdigest()[:32]
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}:".encode())
        for start, length in _parts(size):
            digest.update(os.pread(file.fileno(), length, start))
    return digest.hexdigest()[:32]


def file_key(path: Path) -> list[str | int]:
    """Cache key of a file and its content, made without reading it.

    It holds the inode's change time: unlike the content's modification time, no tool sets it back.
    """
    return [_VERSION, os.path.abspath(path), *file_stamp(path)]


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Size, modification time and inode change time (ns). For a folder, total size and latest times of its pictures."""
    if path.is_dir():
        stamps = [file_stamp(file) for file in frame_files(path)]
        sizes, contents, inodes = zip(*stamps, strict=True)
        return sum(sizes), max(contents), max(inodes)
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _parts(size: int) -> list[tuple[int, int]]:
    """Start and length of the parts of a file that are hashed."""
    if size <= WHOLE:
        return [(0, size)]
    inner = size - 2 * ENDS - BLOCK
    starts = [ENDS + inner * i // (NUM_BLOCKS - 1) for i in range(NUM_BLOCKS)]
    return [(0, ENDS), *((start, BLOCK) for start in starts), (size - ENDS, ENDS)]


def _look(path: Path, max_pixels: int) -> Probe | VideoError:
    try:
        before = file_key(path)
        probe = (
            probe_pictures(path) if is_pictures(path) else probe_video(path, max_pixels=max_pixels)
        )
        content = content_hash(path)
        if file_key(path) != before:  # probe and hash may be of different contents
            return VideoError(path, "it changed while it was read: it may still be being written")
    except VideoError as error:
        return error
    except OSError as error:
        return VideoError(path, str(error.strerror or error))
    return dataclasses.replace(probe, content=content)


def _remembered(ledger: Ledger, paths: Mapping[Path, str]) -> dict[Path, Probe]:
    found = {}
    for path in paths:
        try:
            value: Any = ledger.get(file_key(path))
            if value is not None:
                found[path] = Probe.from_json(value)
        except (OSError, KeyError, TypeError, ValueError):  # a missing file or a bad cache entry
            continue
    return found


def _in_parallel(
    work: Callable[[Path], T], paths: Sequence[Path], what: str
) -> Iterator[tuple[Path, T]]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(work, paths)
        yield from zip(
            paths,
            tqdm(found, f"looking at {what}", len(paths), unit="file", delay=1, disable=None),
            strict=True,
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file. Without locks in the file system, every process does the work itself."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is looking at the videos; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            logger.debug("%s cannot be locked", path)
        yield
